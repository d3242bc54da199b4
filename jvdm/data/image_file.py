"""The values of one image file, as the file has them.

1. 8-bit grayscale and RGB are taken as they are.
2. What another pixel format says in 8 bits per value is converted: RGBA and LA whose every pixel is opaque, a
   palette (its colours; grey ones are grayscale), and 1 bit (0 and 255 of 256 levels, 0 and 1 of two).
3. A file is refused where its decoder would change values or choose among them: more than 8 bits, values that
   are stretched to 255, transparency, an orientation that viewers apply, several frames. The message has the
   ImageMagick command that makes a file that is taken.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jvdm.core.errors import one_line

# What a conversion is called in the log, which counts them.
COLOUR_PALETTE = "of a palette to RGB"
_GREY_PALETTE = "of a grey palette to grayscale"
_OPAQUE = {"RGBA": "of opaque RGBA to RGB", "LA": "of opaque grayscale with alpha to grayscale"}

_ORIENTATION = 0x0112  # of EXIF
_COLOR_MAP, _SAMPLE_FORMAT = 320, 339  # of TIFF
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF", "TGA")
_MODES = ("L", "RGB", "LA", "RGBA", "P", "1")
# How Pillow's decoders unpack files of 8 bits, or of an index or bit as it is; planes are one by one.
_EXACT = {
    *("L", "L;I", "L;R", "RGB", "RGB;L", "RGB;R", "RGBX", "BGR", "BGRX", "XBGR", "XRGB", "YCbCr", "YCCK"),
    *("LA", "RGBA", "RGBa", "BGRA", "ABGR", "R", "G", "B", "A"),
    *("P", "P;1", "P;2", "P;4", "P;R", "P;1R", "P;2R", "P;4R", "1", "1;I", "1;R", "1;IR"),
}
# How the colours of a palette are stored, where they have 8 bits.
_EXACT_COLOURS = {"RGB", "RGB;L", "BGR", "BGRX", None}

_WITHOUT_ALPHA = "`magick IN -alpha off OUT`"
_EIGHT_BITS = "`magick IN -depth 8 -define png:bit-depth=8 OUT.png`"


class Refused(Exception):
    """Why a file is not taken."""


class Pixels(NamedTuple):
    """The values of a file.

    Attributes:
        values: uint8 [H, W, C], C = 1 for grayscale and 3 for RGB.
        conversion: what was converted, in words; "" for nothing.
        is_grey_palette: the file has colours, all of them grey, so it could be RGB as well.
    """

    values: np.ndarray
    conversion: str = ""
    is_grey_palette: bool = False


def read(file: Path, num_levels: int) -> Pixels:
    """The values of a file.

    Args:
        file: its path.
        num_levels: K, which says what 1 bit is.

    Raises:
        Refused: it cannot be read, or not as it is.
    """
    found = _decode(file)
    _check(file, found)
    values = found.values
    if found.mode in _OPAQUE:
        if (values[..., -1] != 255).any():
            raise Refused(f"has transparent pixels ({found.mode}), which would be lost; {_WITHOUT_ALPHA}")
        return Pixels(values[..., :-1], _OPAQUE[found.mode])
    if found.mode == "P":
        return _of_palette(found)
    values = values.reshape(*values.shape[:2], -1)
    if found.mode == "1":
        if num_levels not in (2, 256):
            raise Refused(
                "has 1 bit, which is 0 and 255 of 256 levels, or 0 and 1 with config.data.num_levels=2, not "
                f"{num_levels}"
            )
        return Pixels(
            values.astype(np.uint8) * np.uint8(num_levels - 1), f"of 1 bit to 0 and {num_levels - 1}"
        )
    return Pixels(values)


def _of_palette(found: "_Decoded") -> Pixels:
    colours = found.colours
    if len(colours) <= found.values.max(initial=0):
        raise Refused(f"has pixels beyond its palette of {len(colours)} colours; save it again")
    if (colours == colours[:, :1]).all():
        return Pixels(colours[found.values, :1], _GREY_PALETTE, is_grey_palette=True)
    return Pixels(colours[found.values], COLOUR_PALETTE)


class _Decoded(NamedTuple):
    """What Pillow says of a file, and its values, which are empty where they are not read.

    Attributes:
        format: whatever the file's name says.
        mode: of its pixels, such as "L" or "RGB".
        frames: or pages.
        orientation: of EXIF; 1 is none.
        transparent: one of its colours is.
        stored: how a decoder that says so unpacks it, where that changes values: "L;4" is 4 bits.
        unsigned: its samples are whole numbers without a sign.
        values: [H, W] or [H, W, bands] as Pillow has them.
        colours: uint8 [n, 3] of a palette; None where they are stored otherwise.
    """

    format: str
    mode: str
    frames: int
    orientation: int
    transparent: bool
    stored: str
    unsigned: bool
    values: np.ndarray
    colours: Any


def _decode(file: Path) -> _Decoded:
    from PIL import Image

    try:
        with Image.open(file) as image:
            arguments = [tile[3] for tile in getattr(image, "tile", [])]
            first = [a[0] if isinstance(a, tuple) and a else a for a in arguments]
            tags = getattr(image, "tag_v2", {})
            exact = _is_exact(image, tags)
            read = image.mode in _MODES
            return _Decoded(
                format=image.format or "",
                mode=image.mode,
                frames=getattr(image, "n_frames", 1),
                orientation=image.getexif().get(_ORIENTATION, 1),
                transparent="transparency" in image.info,
                stored=next((a for a in first if isinstance(a, str) and a not in _EXACT), ""),
                unsigned=set(np.ravel(tags.get(_SAMPLE_FORMAT, 1)).tolist()) <= {1},
                values=np.asarray(image) if read else np.empty(0),
                colours=np.reshape(image.getpalette("RGB") or [], (-1, 3)).astype(np.uint8)
                if image.mode == "P" and exact
                else None,
            )
    # Damaged bytes make Pillow raise a dozen kinds of errors, KeyError and struct.error among them.
    except Exception as error:
        raise Refused(f"is not a readable image ({one_line(error)})") from error


def _is_exact(image: Any, tags: Any) -> bool:
    """Whether the colours of an image that is not loaded yet are 8-bit RGB."""
    palette = image.palette
    if palette is not None and palette.rawmode not in _EXACT_COLOURS:
        return False
    # A TIFF's colours have 16 bits, of which Pillow takes the upper 8.
    stored = np.asarray(tags.get(_COLOR_MAP, ()), np.int64)
    return bool((stored % 257 == 0).all() or (stored % 256 == 0).all())


def _check(file: Path, found: _Decoded) -> None:
    """Refuse a file that a decoder would change.

    Raises:
        Refused: naming the command that converts it.
    """
    if found.format not in _FORMATS:
        raise Refused(
            f"is in the format {found.format}; give one of {', '.join(_FORMATS)}: `magick IN OUT.png`"
        )
    if found.frames > 1:
        whole = "" if found.format == "TIFF" else "-coalesce "  # frames may be differences, pages are not
        raise Refused(
            f"has {found.frames} frames or pages; save each one as a separate file: "
            f"`magick IN {whole}OUT-%d.png`"
        )
    if found.mode.startswith(("I", "F")) or (";16" in found.stored and found.stored != "BGR;16"):
        raise Refused(
            f"has 16 bits or more ({found.stored or found.mode}), of which 8 would be lost; save it with 8 "
            f"({_EIGHT_BITS}), or the levels as .npz"
        )
    if found.mode not in _MODES:
        raise Refused(
            f"has the pixel format {found.mode}; it must be 8-bit grayscale (L) or RGB: "
            "`magick IN -colorspace sRGB -alpha off OUT.png`"
        )
    if found.transparent:
        raise Refused(f"has a transparent colour, which would be lost; save it without: {_WITHOUT_ALPHA}")
    if found.orientation != 1:
        raise Refused(
            f"has the EXIF orientation {found.orientation}, which viewers apply; turn its pixels: "
            "`magick IN -auto-orient OUT`"
        )
    if found.stored:
        raise Refused(
            f"does not have 8 bits ({found.stored}), and its values would be stretched to 255; save the "
            f"levels as .npz, or the stretched values: {_EIGHT_BITS}"
        )
    if found.mode == "P" and found.colours is None:
        raise Refused(f"has a palette of colours other than 8-bit RGB; save it with these: {_EIGHT_BITS}")
    if not found.unsigned:
        raise Refused("has samples with a sign; save values from 0 to 255")
    if found.mode == "1" and not _has_one_bit(file, found.format):
        raise Refused(
            "has a palette of black and white and more than 1 bit, which decoders mistake for 1 bit; "
            "`magick IN OUT.png`"
        )
    with file.open("rb") as opened:
        if re.match(rb"P[1-6]", opened.read(2)):
            opened.seek(0)
            _check_netpbm(opened.read())


def _has_one_bit(file: Path, form: str) -> bool:
    """Whether a file that Pillow says is of 1 bit is: of a BMP its palette decides that, not its bits."""
    if form != "BMP":
        return form in ("PNG", "TIFF", "PPM")
    with file.open("rb") as opened:
        header = opened.read(30)
    at = 24 if header[14:18] == b"\x0c\0\0\0" else 28
    return header[at : at + 2] == b"\1\0"


def _check_netpbm(data: bytes) -> None:
    """Refuse a PBM, PGM or PPM whose values a decoder would stretch, or that holds several images.

    Raises:
        Refused: it does.
    """
    # Comments reach to the end of their line; one byte of white space follows the last number.
    numbers = 2 if data[1:2] in b"14" else 3
    pattern = rb"P([1-6])" + numbers * rb"(?:\s|#[^\n\r]*[\n\r])+(\d+)" + rb"(?:#[^\n\r]*)?\s"
    header = re.match(pattern, data)
    if header is None:
        raise Refused("has a header that is no PBM's, PGM's or PPM's of bytes")
    kind, width, height, *maxval = (int(part) for part in header.groups())
    if maxval and maxval[0] > 255:
        raise Refused(f"has 16 bits, of which 8 would be lost; save it with 8 ({_EIGHT_BITS})")
    if maxval and maxval[0] < 255:
        raise Refused(
            f"has values up to {maxval[0]}, which would be stretched to 255; save the levels as .npz for "
            f"config.data.num_levels={maxval[0] + 1}, or the stretched values: {_EIGHT_BITS}"
        )
    rest, count = data[header.end() :], width * height * (3 if kind in (3, 6) else 1)
    if kind > 3:
        more = rest[(width + 7) // 8 * height if kind == 4 else count :].strip()
    else:
        text = re.sub(rb"#[^\n\r]*", b"", rest).split()
        more = (b"".join(text) if kind == 1 else text)[count:]  # bits need no space between them
    if more:
        raise Refused("holds more than one image; save each one as a separate file: `magick IN OUT-%d.png`")
