"""Local images: the bundled digits, an .npz file, a folder of image files."""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jvdm.core.errors import UserError, one_line
from jvdm.data.dataset import Dataset, check_dataset, check_images

DIGITS_LEVELS = 17
DIGITS_TEST = 297
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
_CHANNELS = {"L": 1, "RGB": 3}


def load_digits() -> Dataset:
    """scikit-learn's bundled 8x8 digits, values 0..16, 1500 to train and 297 to test.

    The split is fixed: of `numpy.random.default_rng(0).permutation(1797)` the first 1500 positions
    are the training set and the last 297 the test set, in that order.
    """
    from sklearn.datasets import load_digits as sklearn_digits  # here: it takes seconds to import

    pixels, _ = sklearn_digits(return_X_y=True)
    images = np.asarray(pixels).reshape(-1, 8, 8).astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:-DIGITS_TEST], order[-DIGITS_TEST:]
    return Dataset(
        name="digits", version="-", num_levels=DIGITS_LEVELS, train=images[train], test=images[test]
    )


def load_npz(path: str, *, num_levels: int) -> Dataset:
    """The arrays `train_images` and `test_images` of an .npz file, uint8 [N, H, W, C].

    Raises:
        UserError: no such file, not an .npz, or arrays that are missing or not as they should be.
    """
    train, test = "train_images", "test_images"

    def choose(names: list[str]) -> list[str]:
        for name in (train, test):
            if name not in names:
                raise UserError(
                    f"{path} holds no array {name!r}, only {', '.join(sorted(names)) or 'none'}; "
                    "it must hold train_images and test_images"
                )
        return [train, test]

    arrays = _read_npz(path, choose)
    dataset = Dataset(
        name=f"npz:{Path(path).name}",
        version="-",
        num_levels=num_levels,
        train=arrays[train],
        test=arrays[test],
    )
    return check_dataset(dataset, path, check_images)


def read_npz_split(path: str, split: str) -> tuple[str, np.ndarray]:
    """(name, array) of `<split>_images` of an .npz file, or of its only array.

    Raises:
        UserError: no such file, not an .npz, or several arrays without that one.
    """
    wanted = f"{split}_images"

    def choose(names: list[str]) -> list[str]:
        if wanted in names:
            return [wanted]
        if len(names) == 1:
            return names
        raise UserError(
            f"{path} holds the arrays {', '.join(sorted(names)) or 'none'}; it must hold {wanted} or only one"
        )

    ((name, array),) = _read_npz(path, choose).items()
    return name, array


def read_npz_array(path: str, field: str) -> tuple[str, np.ndarray]:
    """(name, array) of the only array of an .npz file.

    Raises:
        UserError: no such file, not an .npz, or not one array; `field` is where it was asked for.
    """

    def choose(names: list[str]) -> list[str]:
        if len(names) != 1:
            raise UserError(f"{field}: {path} holds {len(names)} arrays; it must hold one")
        return names

    ((name, array),) = _read_npz(path, choose).items()
    return name, array


def _read_npz(path: str, choose: Callable[[list[str]], list[str]]) -> dict[str, np.ndarray]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"no file {str(file)!r}: npz:FILE needs an .npz with train_images and test_images")
    if not zipfile.is_zipfile(file):
        raise UserError(f"{file} is not an .npz archive, or it is truncated; write it with numpy.savez")
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in choose(archive.files)}
    except UserError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{file} cannot be read ({one_line(error)}); it must hold plain uint8 arrays, train_images "
            "and test_images"
        ) from error


def load_folder(path: str, *, num_levels: int) -> Dataset:
    """The image files under `train/` and `test/` of a folder, sorted by name; subfolders count too.

    All of them have one size and one number of channels: grayscale gives C = 1, RGB gives C = 3.

    Raises:
        UserError: no such folder or subfolder, no images, or a file that cannot be read or differs.
    """
    folder = _folder(path)
    files = {split: _image_files(folder, split) for split in ("train", "test")}
    images = {split: _read_all(files[split], files["train"][0]) for split in ("train", "test")}
    dataset = Dataset(
        name=f"folder:{folder.resolve().name}",
        version="-",
        num_levels=num_levels,
        train=images["train"],
        test=images["test"],
    )
    return check_dataset(dataset, str(folder), check_images)


def read_folder_split(path: str, split: str) -> tuple[np.ndarray, tuple[str, ...], bool]:
    """(images, names, whether they are the whole folder) under `<split>/`, or anywhere if there is none.

    Raises:
        UserError: no such folder, no images, or a file that cannot be read or differs.
    """
    folder = _folder(path)
    whole = not (folder / split).is_dir()
    files = _image_files(folder, "." if whole else split)
    base = folder if whole else folder / split
    return _read_all(files, files[0]), tuple(file.relative_to(base).as_posix() for file in files), whole


def _folder(path: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}: folder:DIR needs a folder with train/ and test/")
    return folder


def _image_files(folder: Path, split: str) -> list[Path]:
    if not (folder / split).is_dir():
        raise UserError(f"{folder} has no folder {split}/; the images must be in train/ and test/")
    files = [f for f in (folder / split).rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file()]
    if not files:
        raise UserError(f"{folder / split} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix())


def _read_all(files: list[Path], model: Path) -> np.ndarray:
    """The images of all files, which must have the shape and mode of `model`."""
    shape = _open_image(model).shape
    images = np.empty((len(files), *shape), np.uint8)
    for position, file in enumerate(files):
        image = _open_image(file)
        if image.shape != shape:
            raise UserError(
                f"{file} is {_size(image.shape)} and {model} is {_size(shape)}; all images must be alike"
            )
        images[position] = image
    return images


def _open_image(file: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as image:
            mode = image.mode
            values = np.asarray(image) if mode in _CHANNELS else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} is not a readable image ({one_line(error)})") from error
    if values is None:
        raise UserError(f"{file} has the pixel format {mode}; it must be 8-bit grayscale (L) or RGB")
    return values.reshape(*values.shape[:2], _CHANNELS[mode])


def _size(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"
