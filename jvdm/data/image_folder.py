"""Images from the files of a folder: which are taken, and that each is what its file says.

A file is taken if its name ends as one of `IMAGE_SUFFIXES`, in any folder that is not hidden, symbolic links
included. What is left out is counted and named once; .avif and .jp2 are, because Pillow does not say whether
they have more than 8 bits. A file is refused where its decoder would change values or choose among them: more
than 8 bits, values that are stretched to 255, transparency, a palette, an orientation that viewers apply,
several frames. All refused files are named in one error.
"""

import collections
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jvdm.core.errors import UserError, one_line, unknown
from jvdm.core.files import expanded
from jvdm.data.dataset import Dataset, check_dataset, check_images
from jvdm.data.splitting import HeldOut

log = logging.getLogger("jvdm")

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".tif", ".tiff"),
    *(".pgm", ".ppm", ".pnm", ".gif", ".tga"),
)
_CHANNELS = {"L": 1, "RGB": 3}
_ORIENTATION = 0x0112  # of EXIF
_SAMPLE_FORMAT = 339  # of TIFF
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
    images, num_train = _read_all([*splits.train, *splits.test]), len(splits.train)
    dataset = Dataset(
        name=f"folder:{folder.resolve().name}",
        version=splits.version,
        num_levels=num_levels,
        train=images[:num_train],
        test=images[num_train:],
    )
    return check_dataset(dataset, str(folder), check_images)


def read_folder_split(path: str, split: str, held_out: HeldOut | None) -> FolderSplit:
    """The images under `<split>/`, or anywhere if there is none.

    Args:
        path: of the folder.
        split: its name.
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
    return FolderSplit(_read_all(files), names, split, version)


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


class _Refused(Exception):
    """Why a file is not taken."""


def _read_all(files: list[Path]) -> np.ndarray:
    """The images of all files, of the shape of the first that can be taken.

    Raises:
        UserError: naming all files that cannot be taken or have another shape.
    """
    images, taken = np.empty(0, np.uint8), 0
    refused: list[str] = []
    like: tuple[Path, tuple[int, ...]] | None = None
    for file in files:
        try:
            image = _open_image(file)
        except _Refused as error:
            refused.append(f"{file} {error}")
            continue
        if like is None:
            like = file, image.shape
        if image.shape != like[1]:
            refused.append(
                f"{file} is {_size(image.shape)} and {like[0]} is {_size(like[1])}; all images must be alike"
            )
            continue
        if not taken:
            images = np.empty((len(files), *image.shape), np.uint8)
        images[taken] = image
        taken += 1
    if len(refused) == 1:
        raise UserError(refused[0])
    if refused:
        more = f"; and {len(refused) - _MOST_NAMES} more" if len(refused) > _MOST_NAMES else ""
        raise UserError(
            f"{len(refused)} of {len(files)} files cannot be taken: {'; '.join(refused[:_MOST_NAMES])}{more}"
        )
    return images


_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF", "TGA")
# How Pillow's decoders unpack files of 8 bits, planes and a colour table of bytes included.
_EIGHT_BITS = {
    *("L", "L;I", "L;R", "RGB", "RGB;L", "RGB;R", "RGBX", "BGR", "BGRX", "XBGR", "XRGB", "YCbCr", "YCCK"),
    *("R", "G", "B"),
}


class _Decoded(NamedTuple):
    """What Pillow says of a file, and its values, or None where they are not read.

    Attributes:
        format: whatever the file's name says.
        mode: of its pixels, "L" or "RGB".
        frames: or pages.
        orientation: of EXIF; 1 is none.
        transparent: one of its colours is.
        stored: how a decoder that says so unpacks it: "RGB;16B" is 16 bits, "L;4" is 4.
        unsigned: its samples are whole numbers without a sign.
        values: as Pillow has them.
    """

    format: str
    mode: str
    frames: int
    orientation: int
    transparent: bool
    stored: str
    unsigned: bool
    values: np.ndarray | None


def _decode(file: Path) -> _Decoded:
    from PIL import Image

    try:
        with Image.open(file) as image:
            arguments = [tile[3] for tile in getattr(image, "tile", [])]
            first = [a[0] if isinstance(a, tuple) and a else a for a in arguments]
            tags = getattr(image, "tag_v2", {})
            return _Decoded(
                format=image.format or "",
                mode=image.mode,
                frames=getattr(image, "n_frames", 1),
                orientation=image.getexif().get(_ORIENTATION, 1),
                transparent="transparency" in image.info,
                stored=next((a for a in first if isinstance(a, str) and a not in _EIGHT_BITS), ""),
                unsigned=set(np.ravel(tags.get(_SAMPLE_FORMAT, 1)).tolist()) <= {1},
                values=np.asarray(image) if image.mode in _CHANNELS else None,
            )
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise _Refused(f"is not a readable image ({one_line(error)})") from error


def _check_netpbm(data: bytes) -> None:
    """Refuse a PGM or PPM whose values a decoder would stretch, or that holds several images.

    Raises:
        _Refused: it does.
    """
    # Comments reach to the end of their line; one byte of white space follows the last number.
    header = re.match(rb"P([2356])" + 3 * rb"(?:\s|#[^\n\r]*[\n\r])+(\d+)" + rb"(?:#[^\n\r]*)?\s", data)
    if header is None:
        raise _Refused("has a header that is no PGM's or PPM's of bytes")
    kind, width, height, maxval = (int(part) for part in header.groups())
    if maxval > 255:
        raise _Refused("has 16 bits, of which 8 would be lost; save it with 8, or the levels as .npz")
    if maxval < 255:
        raise _Refused(
            f"has values up to {maxval}, which would be stretched to 255; save them as .png or .npz"
        )
    rest, count = data[header.end() :], width * height * (3 if kind in (3, 6) else 1)
    more = rest[count:].strip() if kind > 3 else re.sub(rb"#[^\n\r]*", b"", rest).split()[count:]
    if more:
        raise _Refused("holds more than one image; save each one as a separate file")


def _open_image(file: Path) -> np.ndarray:
    """The values of a file, uint8 [H, W, C].

    Raises:
        _Refused: it cannot be read, or not as it is.
    """
    found = _decode(file)
    if found.format not in _FORMATS:
        raise _Refused(f"is in the format {found.format}; give one of {', '.join(_FORMATS)}")
    if found.frames > 1:
        raise _Refused(f"has {found.frames} frames or pages; save each one as a separate file")
    if found.values is None:
        raise _Refused(f"has the pixel format {found.mode}; it must be 8-bit grayscale (L) or RGB")
    if found.transparent:
        raise _Refused("has a transparent colour, which would be lost; save it without")
    if found.orientation != 1:
        raise _Refused(
            f"has the EXIF orientation {found.orientation}, which viewers apply; turn its pixels, as "
            "PIL.ImageOps.exif_transpose does"
        )
    if ";16" in found.stored:
        raise _Refused("has 16 bits, of which 8 would be lost; save it with 8, or the levels as .npz")
    if found.stored:
        raise _Refused(
            f"does not have 8 bits ({found.stored}), and its values would be stretched to 255; save them as "
            "8-bit .png or .npz"
        )
    if not found.unsigned:
        raise _Refused("has samples with a sign; save values from 0 to 255")
    with file.open("rb") as opened:
        if opened.read(2) in (b"P2", b"P3", b"P5", b"P6"):
            opened.seek(0)
            _check_netpbm(opened.read())
    return found.values.reshape(*found.values.shape[:2], _CHANNELS[found.mode])


def _size(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"
