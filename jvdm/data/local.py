"""Local images: the bundled digits, an .npz file. `image_folder` has folders of image files."""

import logging
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.npyio import NpzFile

from jvdm.core.errors import UserError, one_line, unknown
from jvdm.core.files import expanded
from jvdm.data.dataset import Dataset, check_dataset, check_images
from jvdm.data.levels import as_levels, warn_of_unused_levels
from jvdm.data.splitting import HeldOut

log = logging.getLogger("jvdm")

DIGITS_LEVELS = 17
DIGITS_TEST = 297
# What arrays of labels are called.
_LABELS = {"labels", "y", "train_labels", "test_labels", "y_train", "y_test"}


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


def load_npz(path: str, *, num_levels: int, held_out: HeldOut) -> Dataset:
    """The arrays `train_images` and `test_images` of an .npz file, [N, H, W, C].

    A part of `train_images` is held out if it has no `test_images`, and of its only array of images if it has
    neither.

    Raises:
        UserError: no such file, not an .npz, or arrays that are missing or not as they should be.
    """
    arrays, version = _read_npz(path, lambda archive: _choose(path, archive)), "-"
    arrays = {name: as_levels(array, name, num_levels, path) for name, array in arrays.items()}
    if len(arrays) == 1:
        train, test, version = _divide(path, arrays, held_out)
    else:
        train, test = arrays["train_images"], arrays["test_images"]
    dataset = Dataset(
        name=f"npz:{Path(path).name}", version=version, num_levels=num_levels, train=train, test=test
    )
    check_dataset(dataset, path, check_images)
    warn_of_unused_levels(dataset, path)
    return dataset


def _choose(path: str, archive: NpzFile) -> list[str]:
    """The names of both arrays of images, or of the only one.

    Raises:
        UserError: none, or several without those names.
    """
    names = list(archive)
    if "train_images" in names:
        return [name for name in ("train_images", "test_images") if name in names]
    if "test_images" in names:
        raise UserError(
            f"{path} holds no array 'train_images', only {', '.join(sorted(names))}; "
            "it must hold train_images and test_images"
        )
    if len(names) == 1:
        return names
    found = [name for name in sorted(names) if _is_images(archive, name)]
    if len(found) > 1:
        raise UserError(
            f"{path} holds several arrays of images, {', '.join(found)}; their names must be train_images "
            "and test_images"
        )
    if not found:
        raise UserError(
            f"{path} holds the arrays {', '.join(sorted(names)) or 'none'}; it must hold train_images and "
            "test_images, or one array of images [N, H, W, C]"
        )
    return found


def _is_images(archive: NpzFile, name: str) -> bool:
    try:
        return archive[name].ndim == 4
    except ValueError:  # it is of Python objects
        return False


class NpzSplit(NamedTuple):
    """Images of an .npz file.

    Attributes:
        images: the array.
        split: "train" or "test", or "all" where the array is taken whole.
        version: how the splits were made, "-" where the file has them.
    """

    images: np.ndarray
    split: str
    version: str


def read_npz_split(path: str, split: str, *, num_levels: int, held_out: HeldOut | None) -> NpzSplit:
    """The array `<split>_images` of an .npz file, or its only array, or `arr_0`.

    Args:
        path: of the file.
        split: its name.
        num_levels: K.
        held_out: how "train" and "test" are made, if the file lacks one, as in `load_npz`; None does not
            divide what is there.

    Raises:
        UserError: no such file, not an .npz, or several arrays without that one.
    """
    wanted, divided = f"{split}_images", False

    def choose(archive: NpzFile) -> list[str]:
        nonlocal divided
        names = list(archive)
        if held_out is not None and not (wanted in names and (split != "train" or "test_images" in names)):
            if split not in ("train", "test"):
                raise unknown("split", split, ("train", "test"))
            divided = True
            return _choose(path, archive)
        if wanted in names:
            return [wanted]
        if len(names) == 1:
            return names
        if "arr_0" in names:  # jvdm's own samples, with their log-likelihoods
            return ["arr_0"]
        raise UserError(
            f"{path} holds the arrays {', '.join(sorted(names)) or 'none'}; it must hold {wanted} or only one"
        )

    found = _read_npz(path, choose)
    arrays = {name: as_levels(array, name, num_levels, path) for name, array in found.items()}
    if held_out is not None and divided:
        train, test, version = _divide(path, arrays, held_out)
        return NpzSplit(train if split == "train" else test, split, version)
    ((name, images),) = arrays.items()
    return NpzSplit(images, split if name == wanted else "all", "-")


def _divide(
    path: str, arrays: dict[str, np.ndarray], held_out: HeldOut
) -> tuple[np.ndarray, np.ndarray, str]:
    """(train, test, version) of an only array."""
    ((name, images),) = arrays.items()
    if images.ndim == 0:
        raise UserError(f"{path}: {name} has shape []; it must be [N, H, W, C]")
    division = held_out.divide(len(images), path, f"has one array of images, {name}")
    return images[division.train], images[division.test], division.version


def read_npz_array(path: str, field: str) -> tuple[str, np.ndarray]:
    """(name, array) of the only array of an .npz file.

    Raises:
        UserError: no such file, not an .npz, or not one array; `field` is where it was asked for.
    """

    def choose(archive: NpzFile) -> list[str]:
        if len(archive) != 1:
            raise UserError(f"{field}: {path} holds {len(archive)} arrays; it must hold one")
        return list(archive)

    ((name, array),) = _read_npz(path, choose).items()
    return name, array


def _read_npz(path: str, choose: Callable[[NpzFile], list[str]]) -> dict[str, np.ndarray]:
    file = expanded(path, "npz")
    if not file.is_file():
        raise UserError(f"no file {str(file)!r}: npz:FILE needs an .npz with arrays of images")
    if not zipfile.is_zipfile(file):
        raise UserError(f"{file} is not an .npz archive, or it is truncated; write it with numpy.savez")
    try:
        with np.load(file, allow_pickle=False) as archive:
            chosen = choose(archive)
            if labels := sorted(_LABELS.intersection(archive) - set(chosen)):
                log.warning(
                    "WARNING: %s: %s will be ignored; a source that registers itself can give labels to the "
                    "network",
                    *(path, ", ".join(labels)),
                )
            return {name: archive[name] for name in chosen}
    except UserError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{file} cannot be read ({one_line(error)}); it must hold plain arrays of numbers"
        ) from error
