"""Images the user already has: the bundled digits, an .npz file, a folder of image files."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from jvdm.data.dataset import Dataset, check_dataset
from jvdm.errors import UserError

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
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"no file {str(file)!r}: npz:PATH needs an .npz with train_images and test_images")
    if not zipfile.is_zipfile(file):
        raise UserError(f"{file} is not an .npz archive, or it is truncated; write it with numpy.savez")
    arrays = {}
    try:
        with np.load(file, allow_pickle=False) as archive:
            for name in ("train_images", "test_images"):
                if name not in archive.files:
                    raise UserError(
                        f"{file} holds no array {name!r}, only {', '.join(sorted(archive.files)) or 'none'}; "
                        "it must hold train_images and test_images"
                    )
                arrays[name] = archive[name]
    except UserError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{file} cannot be read ({_one_line(error)}); it must hold plain uint8 arrays, train_images "
            "and test_images"
        ) from error
    dataset = Dataset(
        name=f"npz:{file.name}",
        version="-",
        num_levels=num_levels,
        train=arrays["train_images"],
        test=arrays["test_images"],
    )
    return check_dataset(dataset, str(file))


def load_folder(path: str, *, num_levels: int) -> Dataset:
    """The image files under `train/` and `test/` of a folder, sorted by name; subfolders count too.

    All of them have one size and one number of channels: grayscale gives C = 1, RGB gives C = 3.

    Raises:
        UserError: no such folder or subfolder, no images, or a file that cannot be read or differs.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}: folder:PATH needs a folder with train/ and test/")
    files = {split: _image_files(folder, split) for split in ("train", "test")}
    expected = _open_image(files["train"][0]).shape
    images = {split: _read_all(files[split], expected, files["train"][0]) for split in ("train", "test")}
    dataset = Dataset(
        name=f"folder:{folder.resolve().name}",
        version="-",
        num_levels=num_levels,
        train=images["train"],
        test=images["test"],
        test_names=tuple(file.relative_to(folder / "test").as_posix() for file in files["test"]),
    )
    return check_dataset(dataset, str(folder))


def _image_files(folder: Path, split: str) -> list[Path]:
    if not (folder / split).is_dir():
        raise UserError(f"{folder} has no folder {split}/; the images must lie under train/ and test/")
    files = [f for f in (folder / split).rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file()]
    if not files:
        raise UserError(f"{folder / split} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix())


def _read_all(files: list[Path], shape: tuple[int, ...], model: Path) -> np.ndarray:
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
        raise UserError(f"{file} is not a readable image ({_one_line(error)})") from error
    if values is None:
        raise UserError(f"{file} has the pixel format {mode}; it must be 8-bit grayscale (L) or RGB")
    return values.reshape(*values.shape[:2], _CHANNELS[mode])


def _size(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
