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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jvdm.core.errors import UserError, one_line
from jvdm.core.files import expanded
from jvdm.data.dataset import Dataset, check_dataset, check_images

log = logging.getLogger("jvdm")

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".tif", ".tiff"),
    *(".pgm", ".ppm", ".pnm", ".gif", ".tga"),
)
_CHANNELS = {"L": 1, "RGB": 3}
_ORIENTATION = 0x0112  # of EXIF
# How many names an error or a line of the log has.
_MOST_NAMES = 10


def load_folder(path: str, *, num_levels: int) -> Dataset:
    """The image files under `train/` and `test/` of a folder, sorted by name; subfolders count too.

    All of them have one size and one number of channels: grayscale gives C = 1, RGB gives C = 3.

    Raises:
        UserError: no such folder or subfolder, no images, or files that cannot be taken or differ.
    """
    folder = _folder(path)
    files = {split: _image_files(folder, split) for split in ("train", "test")}
    images, num_train = _read_all([*files["train"], *files["test"]]), len(files["train"])
    dataset = Dataset(
        name=f"folder:{folder.resolve().name}",
        version="-",
        num_levels=num_levels,
        train=images[:num_train],
        test=images[num_train:],
    )
    return check_dataset(dataset, str(folder), check_images)


def read_folder_split(path: str, split: str) -> tuple[np.ndarray, tuple[str, ...], bool]:
    """(images, names, whether they are the whole folder) under `<split>/`, or anywhere if there is none.

    Raises:
        UserError: no such folder, no images, or files that cannot be taken or differ.
    """
    folder = _folder(path)
    whole = not (folder / split).is_dir()
    files = _image_files(folder, "." if whole else split)
    base = folder if whole else folder / split
    return _read_all(files), tuple(file.relative_to(base).as_posix() for file in files), whole


def _folder(path: str) -> Path:
    folder = expanded(path, "folder")
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}: folder:DIR needs a folder with train/ and test/")
    return folder


def _image_files(folder: Path, split: str) -> list[Path]:
    """The files that are taken, sorted; what is left out is logged.

    Raises:
        UserError: no such folder, or no images in it.
    """
    base = folder / split
    if not base.is_dir():
        raise UserError(f"{folder} has no folder {split}/; the images must be in train/ and test/")
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


class _Decoded(NamedTuple):
    """What Pillow says of a file, and its values, or None where they are not read."""

    mode: str
    frames: int
    orientation: int
    transparent: bool
    raw: str
    values: np.ndarray | None


def _decode(file: Path) -> _Decoded:
    from PIL import Image

    try:
        with Image.open(file) as image:
            # As the decoder is told to unpack it: "RGB;16B" of 16 bits, ("L", 15) of values up to 15.
            raw = "; ".join(str(tile[3]) for tile in getattr(image, "tile", []))
            return _Decoded(
                mode=image.mode,
                frames=getattr(image, "n_frames", 1),
                orientation=image.getexif().get(_ORIENTATION, 1),
                transparent="transparency" in image.info,
                raw=raw if image.format != "PPM" else f"{raw} maxval {_maxval(file)}",
                values=np.asarray(image) if image.mode in _CHANNELS else None,
            )
    except (OSError, ValueError, IndexError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise _Refused(f"is not a readable image ({one_line(error)})") from error


def _maxval(file: Path) -> int:
    """The largest value of a PGM or PPM, by its header.

    Raises:
        ValueError: it has none.
    """
    with file.open("rb") as opened:
        header = opened.read(4096)
    words = b" ".join(line.partition(b"#")[0] for line in header.splitlines()[:64]).split()
    return 1 if words[0] in (b"P1", b"P4") else int(words[3])


def _open_image(file: Path) -> np.ndarray:
    """The values of a file, uint8 [H, W, C].

    Raises:
        _Refused: it cannot be read, or not as it is.
    """
    found = _decode(file)
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
    if ";16" in found.raw or "maxval 65535" in found.raw:
        raise _Refused("has 16 bits, of which 8 would be lost; save it with 8, or the levels as .npz")
    if "maxval" in found.raw and not found.raw.endswith("maxval 255"):
        maxval = found.raw.rpartition(" ")[2]
        raise _Refused(
            f"has values up to {maxval}, which would be stretched to 255; save them as .png or .npz"
        )
    return found.values.reshape(*found.values.shape[:2], _CHANNELS[found.mode])


def _size(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"
