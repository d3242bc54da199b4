"""Readers of the archives' formats: from a path to PNG images, one by one, in the archive's order.

Each reader takes the archive's path, then what to take from it, and yields the bytes of PNG files.
None of them unpickles anything or extracts an archive to disk.
"""

import contextlib
import gzip
import io
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jvdm.core.errors import UserError, one_line

_MNIST_MAGIC = 2051
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    KeyError,
    ValueError,
    SyntaxError,
)


def encode_png(image: np.ndarray) -> bytes:
    """A uint8 image [H, W, C], C of 1 or 3, as a PNG file."""
    buffer = io.BytesIO()
    from PIL import Image

    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "png")
    return buffer.getvalue()


def decode_png(data: bytes, image_shape: tuple[int, int, int]) -> np.ndarray:
    """A PNG file as a uint8 image [H, W, C].

    Raises:
        ValueError: it is not a PNG of that shape.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("png",)) as image:
        found = (image.height, image.width, len(image.getbands()))
        if found != image_shape or image.mode not in ("L", "RGB"):
            raise ValueError(f"an image of {found} ({image.mode}), not {image_shape}")
        return np.asarray(image).reshape(image_shape)


def cifar_binary(path: Path, *, members: tuple[str, ...]) -> Iterator[bytes]:
    """CIFAR-10's binary version: records of one label byte and three 32x32 planes, red first."""
    with _reading(path, "CIFAR-10 binary"), tarfile.open(path, "r:gz") as archive:
        for member in members:
            file = archive.extractfile(member)
            data = np.frombuffer(file.read() if file else b"", np.uint8)
            if len(data) == 0 or len(data) % 3073:
                raise ValueError(f"{member} has {len(data)} bytes, which are not records of 3073")
            planes = data.reshape(-1, 3073)[:, 1:].reshape(-1, 3, 32, 32)
            for image in planes.transpose(0, 2, 3, 1):
                yield encode_png(image)


def mnist_idx(path: Path) -> Iterator[bytes]:
    """MNIST's gzipped IDX file of 28x28 images."""
    with _reading(path, "MNIST IDX"), gzip.open(path) as file:
        header = file.read(16)
        if len(header) < 16:
            raise ValueError("no header of 16 bytes")
        magic, count, height, width = struct.unpack(">4I", header)
        if (magic, height, width) != (_MNIST_MAGIC, 28, 28):
            raise ValueError(f"magic number {magic}, images of {height}x{width}")
        data = file.read()
        if len(data) != count * 784:
            raise ValueError(f"{len(data)} bytes of pixels for {count} images")
        for image in np.frombuffer(data, np.uint8).reshape(count, 28, 28, 1):
            yield encode_png(image)


def png_tar(path: Path, *, image_shape: tuple[int, int, int]) -> Iterator[bytes]:
    """The tar file of PNG images of the old downsampled ImageNet."""
    with _reading(path, "tar of PNG images"), tarfile.open(path, "r:") as archive:
        for member in archive:
            if not member.isfile() or not member.name.endswith(".png"):
                continue
            file = archive.extractfile(member)
            data = file.read() if file else b""
            try:
                decode_png(data, image_shape)
            except (OSError, SyntaxError, ValueError) as error:
                raise ValueError(f"{member.name}: {error}") from error
            yield data


def npz_zip(path: Path, *, image_shape: tuple[int, int, int]) -> Iterator[bytes]:
    """The zip file of .npz batches of the new downsampled ImageNet: `data` [n, C*H*W]."""
    height, width, channels = image_shape
    with _reading(path, "zip of .npz batches"), zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npz")]
        for member in sorted(members, key=_natural):
            with np.load(io.BytesIO(archive.read(member)), allow_pickle=False) as batch:
                data = batch["data"]
            if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != height * width * channels:
                raise ValueError(f"{member}: data is {data.dtype} {list(data.shape)}")
            for image in data.reshape(-1, channels, height, width).transpose(0, 2, 3, 1):
                yield encode_png(image)


def _natural(name: str) -> list[tuple[int, str]]:
    # batch_2 before batch_10
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


@contextlib.contextmanager
def _reading(path: Path, form: str):
    try:
        yield
    except UserError:
        raise
    except _DAMAGE as error:
        raise UserError(
            f"{path} is damaged or not a {form} archive ({one_line(error)}); fetch it again"
        ) from error
