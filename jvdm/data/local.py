"""Local images: the bundled digits, an .npz file. `image_folder` has folders of image files."""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jvdm.core.errors import UserError, one_line
from jvdm.core.files import expanded
from jvdm.data.dataset import Dataset, check_dataset, check_images

DIGITS_LEVELS = 17
DIGITS_TEST = 297


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
    """(name, array) of `<split>_images` of an .npz file, of its only array, or of `arr_0`.

    Raises:
        UserError: no such file, not an .npz, or several arrays without that one.
    """
    wanted = f"{split}_images"

    def choose(names: list[str]) -> list[str]:
        if wanted in names:
            return [wanted]
        if len(names) == 1:
            return names
        if "arr_0" in names:  # jvdm's own samples, with their log-likelihoods
            return ["arr_0"]
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
    file = expanded(path, "npz")
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
