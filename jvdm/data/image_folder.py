"""Images from the files of a folder: which are taken, in which split, and that all are alike.

A file is taken if its name ends as one of `IMAGE_SUFFIXES`, in any folder that is not hidden, symbolic links
included. What is left out is counted and named once; .avif and .jp2 are, because Pillow does not say whether
they have more than 8 bits. `image_file` says what a file's values are; what it refuses is named in one error.
"""

import collections
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jvdm.core.errors import UserError, unknown
from jvdm.core.files import expanded
from jvdm.data import image_file
from jvdm.data.dataset import Dataset, check_dataset, check_images
from jvdm.data.levels import warn_of_unused_levels
from jvdm.data.splitting import HeldOut

log = logging.getLogger("jvdm")

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".tif", ".tiff"),
    *(".pgm", ".ppm", ".pnm", ".gif", ".tga"),
)
# What folders of splits are called elsewhere, in any case.
_SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
# How many names an error or a line of the log has.
_MOST_NAMES = 10


class FolderSplit(NamedTuple):
    """Images of a folder.

    Attributes:
        images: uint8 [N, H, W, C].
        names: of their files, relative to the folder that was searched.
        split: "train" or "test", or "all" where the folder is taken whole.
        version: how the splits were made, "-" where the folder has them.
    """

    images: np.ndarray
    names: tuple[str, ...]
    split: str
    version: str


def load_folder(path: str, *, num_levels: int, held_out: HeldOut) -> Dataset:
    """The image files under `train/` and `test/` of a folder, sorted by name; subfolders count too.

    Without `test/`, a part of the images under `train/` is held out, and without both, a part of all images.
    All of them have one size and one number of channels: grayscale gives C = 1, RGB gives C = 3.

    Raises:
        UserError: no such folder, no images, or files that cannot be taken or differ.
    """
    folder = _folder(path)
    splits = _splits(folder, held_out)
    images = _read_all([*splits.train, *splits.test], num_levels, folder)
    num_train = len(splits.train)
    dataset = Dataset(
        name=f"folder:{folder.resolve().name}",
        version=splits.version,
        num_levels=num_levels,
        train=images[:num_train],
        test=images[num_train:],
    )
    check_dataset(dataset, str(folder), check_images)
    warn_of_unused_levels(dataset, str(folder))
    return dataset


def has_subfolder(path: str, name: str) -> bool:
    """Whether a folder has one of that name directly in it."""
    return name not in ("", ".", "..") and "/" not in name and (expanded(path, "folder") / name).is_dir()


def read_folder_split(path: str, split: str, *, num_levels: int, held_out: HeldOut | None) -> FolderSplit:
    """The images under `<split>/`, or anywhere if there is none.

    Args:
        path: of the folder.
        split: its name.
        num_levels: K.
        held_out: how "train" and "test" are made, if the folder lacks one, as in `load_folder`; None does not
            divide what is there.

    Raises:
        UserError: no such folder, no images, or files that cannot be taken or differ.
    """
    folder = _folder(path)
    is_there, version = (folder / split).is_dir(), "-"
    base = folder / split if is_there else folder
    if held_out is not None and not (is_there and (split != "train" or (folder / "test").is_dir())):
        if split not in ("train", "test"):
            raise unknown("split", split, ("train", "test"))
        splits = _splits(folder, held_out)
        files, version, base = splits._asdict()[split], splits.version, splits.base
    else:
        files, split = _image_files(folder, split if is_there else "."), split if is_there else "all"
    names = tuple(file.relative_to(base).as_posix() for file in files)
    return FolderSplit(_read_all(files, num_levels, folder), names, split, version)


def _folder(path: str) -> Path:
    folder = expanded(path, "folder")
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}: folder:DIR needs a folder of images")
    return folder


class _Splits(NamedTuple):
    """The files of each split, the folder that was searched for those that were divided, and the version."""

    train: list[Path]
    test: list[Path]
    base: Path
    version: str


def _splits(folder: Path, held_out: HeldOut) -> _Splits:
    """The files of `train/` and `test/`, or of the two parts of what there is instead.

    Raises:
        UserError: no images, or folders that do not say what is to be trained on.
    """
    has_train, has_test = ((folder / split).is_dir() for split in ("train", "test"))
    if has_test and not has_train:
        raise UserError(
            f"{folder} has test/ but no train/: put images to train on into train/, or rename test/ to train/"
        )
    if has_test:
        return _Splits(_image_files(folder, "train"), _image_files(folder, "test"), folder, "-")
    base = folder / "train" if has_train else folder
    files = _image_files(folder, "train" if has_train else ".")
    _refuse_other_splits(folder, base, files)
    why = "has no test/" if has_train else "has neither train/ nor test/"
    division = held_out.divide(len(files), str(folder), why)
    train, test = ([files[i] for i in part] for part in (division.train, division.test))
    return _Splits(train, test, base, division.version)


def _refuse_other_splits(folder: Path, base: Path, files: list[Path]) -> None:
    """Refuse folders that look like splits, for their images would be divided anew or left out.

    Raises:
        UserError: naming them.
    """
    found = {part for file in files for part in file.relative_to(base).parts[:-1]}
    found |= {each.name for each in folder.iterdir() if each.is_dir() and each != base}
    if others := sorted(f"{name}/" for name in found if name.lower() in _SPLIT_NAMES):
        raise UserError(
            f"{folder} has no test/ but {', '.join(others)}; put the images into train/ and test/, or rename "
            "these folders"
        )


def _image_files(folder: Path, split: str) -> list[Path]:
    """The files that are taken, sorted; what is left out is logged.

    Raises:
        UserError: no images among them.
    """
    base = folder / split
    taken, others, hidden = [], collections.Counter(), 0
    for file in _walk(base):
        if any(part.startswith(".") or part == "__MACOSX" for part in file.relative_to(base).parts):
            hidden += 1
        elif file.suffix.lower() in IMAGE_SUFFIXES:
            taken.append(file)
        else:
            others[file.suffix.lower() or "no suffix"] += 1
    if not taken:
        raise UserError(f"{base} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    left = [f"{count} of {suffix}" for suffix, count in sorted(others.items())]
    left += [f"{hidden} hidden"] * bool(hidden)
    without = f"; left out: {', '.join(left)}" if left else ""
    log.info("%s: %d images%s", os.path.normpath(base), len(taken), without)
    return sorted(taken, key=lambda file: file.relative_to(folder).as_posix())


def _walk(base: Path) -> Iterator[Path]:
    """Every file below a folder, through symbolic links to folders, each of these once."""
    seen = set()
    for name, folders, files in os.walk(base, followlinks=True):
        real = os.path.realpath(name)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for file in files:
            path = Path(name, file)
            if path.is_file():  # not a link to nothing, a socket or a pipe
                yield path


def _read_all(files: list[Path], num_levels: int, folder: Path) -> np.ndarray:
    """The images of all files, of the shape of the first that can be taken.

    A grey palette is one of colours where the other images have colours.

    Args:
        files: to read.
        num_levels: K, which says what 1 bit is.
        folder: for the log, which counts what was converted.

    Raises:
        UserError: naming all files that cannot be taken or have another shape.
    """
    images, converted = np.empty(0, np.uint8), collections.Counter()
    refused: dict[Path, str] = {}
    like: tuple[Path, tuple[int, ...]] | None = None
    later: list[tuple[int, image_file.Pixels]] = []

    def take(position: int, pixels: image_file.Pixels) -> None:
        nonlocal images, like
        file, values, conversion = files[position], pixels.values, pixels.conversion
        if like is not None and pixels.is_grey_palette and like[1][-1] == 3:
            values, conversion = np.repeat(values, 3, axis=-1), image_file.COLOUR_PALETTE
        if like is None:
            like = file, values.shape
            images = np.empty((len(files), *values.shape), np.uint8)
        if values.shape != like[1]:
            refused[file] = _unlike(values.shape, like)
            return
        images[position] = values
        if conversion:
            converted[conversion] += 1

    for position, file in enumerate(files):
        try:
            pixels = image_file.read(file, num_levels)
        except image_file.Refused as error:
            refused[file] = str(error)
            continue
        if pixels.is_grey_palette and like is None:
            later.append((position, pixels))
        else:
            take(position, pixels)
    for position, pixels in later:
        take(position, pixels)
    _raise(refused, len(files))
    if converted:
        counts = ", ".join(f"{count} {conversion}" for conversion, count in sorted(converted.items()))
        log.info("%s: converted without loss: %s", os.path.normpath(folder), counts)
    return images


def _raise(refused: dict[Path, str], num_files: int) -> None:
    """Name all files that are refused, in the order of their names, in one error.

    Raises:
        UserError: there are some.
    """
    reasons = [f"{file} {reason}" for file, reason in sorted(refused.items())]
    if len(reasons) == 1:
        raise UserError(reasons[0])
    if reasons:
        more = f"; and {len(reasons) - _MOST_NAMES} more" if len(reasons) > _MOST_NAMES else ""
        raise UserError(
            f"{len(reasons)} of {num_files} files cannot be taken: {'; '.join(reasons[:_MOST_NAMES])}{more}"
        )


def _unlike(shape: tuple[int, ...], like: tuple[Path, tuple[int, ...]]) -> str:
    """Why an image of another shape than the first one is refused, and how it gets that shape."""
    file, (height, width, channels) = like
    if shape[:2] != (height, width):
        command = f"magick IN -resize {width}x{height}! OUT"
    else:
        command = "magick IN PNG24:OUT.png" if channels == 3 else "magick IN -colorspace Gray OUT"
    return f"is {_size(shape)} and {file} is {_size(like[1])}; all images must be alike: `{command}`"


def _size(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"
