"""Small archives in the true formats of the published datasets, and the records that describe them."""

import dataclasses
import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from jvdm.data.archives import Archive
from jvdm.data.published import PUBLISHED, Published

NUM_TRAIN, NUM_TEST = 10, 3


def random_images(seed: int, count: int, shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def write_cifar10(folder: Path, train: np.ndarray, test: np.ndarray) -> None:
    def records(images):
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
        labels = np.arange(len(images), dtype=np.uint8)[:, None] % 10
        return np.concatenate([labels, planes], axis=1).tobytes()

    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        add(tar, "cifar-10-batches-bin/batches.meta.txt", b"airplane\n")
        add(tar, "cifar-10-batches-bin/test_batch.bin", records(test))
        # Out of order in the archive: the reader goes by name.
        for i in (4, 1, 5, 2, 3):
            batch = np.array_split(train, 5)[i - 1]
            add(tar, f"cifar-10-batches-bin/data_batch_{i}.bin", records(batch))


def write_mnist(folder: Path, train: np.ndarray, test: np.ndarray) -> None:
    for name, images in (("train", train), ("t10k", test)):
        header = struct.pack(">4I", 2051, len(images), 28, 28)
        with gzip.open(folder / f"{name}-images-idx3-ubyte.gz", "wb") as file:
            file.write(header + images.tobytes())


def write_old_imagenet(folder: Path, train: np.ndarray, test: np.ndarray) -> None:
    size = train.shape[1]
    for name, images in (("train", train), ("valid", test)):
        with tarfile.open(folder / f"{name}_{size}x{size}.tar", "w") as tar:
            directory = tarfile.TarInfo(f"{name}_{size}x{size}")
            directory.type = tarfile.DIRTYPE
            tar.addfile(directory)
            for i, image in enumerate(images):
                add(tar, f"{name}_{size}x{size}/{i:07d}.png", _png(image))


def write_new_imagenet(folder: Path, train: np.ndarray, test: np.ndarray) -> None:
    def batch(images):
        buffer = io.BytesIO()
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
        np.savez(buffer, data=rows, labels=np.ones(len(images), np.int64), mean=np.zeros(3072))
        return buffer.getvalue()

    with zipfile.ZipFile(folder / "Imagenet32_train_npz.zip", "w") as archive:
        # Ten batches, so that 10 sorts after 9 and not after 1.
        for i, part in sorted(enumerate(np.array_split(train, 10)), key=lambda item: str(item[0] + 1)):
            archive.writestr(f"train_data_batch_{i + 1}.npz", batch(part))
    with zipfile.ZipFile(folder / "Imagenet32_val_npz.zip", "w") as archive:
        archive.writestr("val_data.npz", batch(test))


WRITERS = {
    "cifar10": write_cifar10,
    "mnist": write_mnist,
    "imagenet32_old": write_old_imagenet,
    "imagenet32_new": write_new_imagenet,
    "imagenet64": write_old_imagenet,
}


def images_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    shape = PUBLISHED[name].image_shape
    return random_images(1, NUM_TRAIN, shape), random_images(2, NUM_TEST, shape)


def write(name: str, data_dir: Path) -> Path:
    """Puts small archives where a user would, and returns that folder."""
    folder = data_dir / "downloads" / "manual"
    folder.mkdir(parents=True, exist_ok=True)
    WRITERS[name](folder, *images_of(name))
    return folder


def describing(archive: Archive, path: Path, **changes) -> Archive:
    """The record of an archive with the size and checksum of another file."""
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    return dataclasses.replace(archive, **{"sha256": sha256, "size": len(data), **changes})


def small(name: str, folder: Path, **changes) -> Published:
    """The record of a published dataset with the sizes and checksums of the small archives."""
    published = PUBLISHED[name]
    splits = {}
    for split, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        record = published.split(split)
        archive = describing(record.archive, folder / record.archive.file_name, **changes)
        splits[split] = dataclasses.replace(record, archive=archive, num_images=count)
    return dataclasses.replace(published, **splits)
