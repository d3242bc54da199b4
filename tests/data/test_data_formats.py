"""Readers of the published formats: one line for every way in which an archive can be damaged."""

import functools
import gzip
import io
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from helpers import published_archives as archives

from jvdm.core.errors import UserError
from jvdm.data import formats
from jvdm.data.published import PUBLISHED


def _cifar(path, *, size=3073, member="cifar-10-batches-bin/test_batch.bin"):
    with tarfile.open(path, "w:gz") as tar:
        archives.add(tar, member, bytes(size))


def _mnist(path, *, magic=2051, height=28, missing=0, count=2):
    with gzip.open(path, "wb") as file:
        file.write(struct.pack(">4I", magic, count, height, 28) + bytes(count * 784 - missing))


def _truncated_gzip(path):
    _mnist(path)
    path.write_bytes(path.read_bytes()[:-10])


def _npz(path, data):
    buffer = io.BytesIO()
    np.savez(buffer, **data)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("val_data.npz", buffer.getvalue())


cifar_test = functools.partial(formats.cifar_binary, members=("cifar-10-batches-bin/test_batch.bin",))
png32 = functools.partial(formats.png_tar, image_shape=(32, 32, 3))
npz32 = functools.partial(formats.npz_zip, image_shape=(32, 32, 3))
DAMAGED = {
    "cifar record": (cifar_test, functools.partial(_cifar, size=3072), "3072 bytes, which are not records"),
    "cifar empty": (cifar_test, functools.partial(_cifar, size=0), "0 bytes, which are not records"),
    "cifar member": (cifar_test, functools.partial(_cifar, member="x"), "test_batch.bin' not found"),
    "cifar text": (cifar_test, lambda path: path.write_text("hello"), "CIFAR-10 binary archive"),
    "mnist labels": (formats.mnist_idx, functools.partial(_mnist, magic=2049), "magic number 2049"),
    "mnist size": (formats.mnist_idx, functools.partial(_mnist, height=29), "images of 29x28"),
    "mnist short": (formats.mnist_idx, functools.partial(_mnist, missing=1), "1567 bytes of pixels for 2"),
    "mnist cut": (formats.mnist_idx, _truncated_gzip, "ended before"),
    "mnist text": (formats.mnist_idx, lambda path: path.write_text("hello"), "MNIST IDX archive"),
    "tar text": (png32, lambda path: path.write_text("hello"), "tar of PNG images archive"),
    "zip text": (npz32, lambda path: path.write_text("hello"), "zip of .npz batches archive"),
    "zip float": (npz32, lambda path: _npz(path, {"data": np.zeros((2, 3072))}), r"float64 \[2, 3072\]"),
    "zip size": (npz32, lambda path: _npz(path, {"data": np.zeros((2, 5), np.uint8)}), r"uint8 \[2, 5\]"),
    "zip pickle": (npz32, lambda path: _npz(path, {"data": np.array([None])}), "Object arrays"),
    "zip no data": (npz32, lambda path: _npz(path, {"x": np.zeros(1)}), "data is not a file"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_formats(case, tmp_path):
    read, write, message = DAMAGED[case]
    path = tmp_path / "archive"
    write(path)
    with pytest.raises(UserError, match=message) as caught:
        list(read(path))
    assert f"{path} is damaged or not a" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (formats.encode_png(np.zeros((32, 31, 3), np.uint8)), r"\(32, 31, 3\) \(RGB\), not \(32, 32, 3\)"),
        (formats.encode_png(np.zeros((32, 32, 1), np.uint8)), r"\(32, 32, 1\) \(L\)"),
        (formats.encode_png(archives.random_images(0, 1, (32, 32, 3))[0])[:900], "truncated"),
        (b"hello", "cannot identify image"),
    ],
)
def test_tar_names_the_image_that_is_wrong(data, message, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        archives.add(tar, "valid_32x32/00001.png", data)
    with pytest.raises(UserError, match=f"valid_32x32/00001.png: .*{message}"):
        list(png32(tmp_path / "a.tar"))


def test_the_records_of_the_published_archives():
    """Counts and sizes agree with each other; a digit lost while typing would show."""
    for name, images in PUBLISHED.items():
        for split in ("train", "test"):
            archive = images.split(split).archive
            assert len(bytes.fromhex(archive.sha256)) == 32, name
            assert f"{images.split(split).num_images:,}" in images.description
    # Uncompressed CIFAR-10 is 60,000 records of 3073 bytes; the tars pad each image to 512 bytes.
    assert PUBLISHED["cifar10"].train.archive.size < 60000 * 3073
    for name in ("imagenet32_old", "imagenet64"):
        for split in ("train", "test"):
            record = PUBLISHED[name].split(split)
            assert record.archive.size % 512 == 0
            assert record.archive.size > record.num_images * 1024
