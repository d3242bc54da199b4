"""Published datasets on disk: ArrayRecords written once, decoded once into memory-mapped arrays.

    <data_dir>/downloads/manual/<archive>                   put there by hand, or downloaded
    <data_dir>/jvdm_images/<name>/<version>/                the dataset as TFDS prepares it
    <data_dir>/jvdm_images/<name>/<version>/<split>.npy     uint8 [N, H, W, C], what is read

tensorflow-datasets is imported only when a split has no valid array yet.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jvdm.core import locks
from jvdm.core.errors import UserError, one_line
from jvdm.core.files import expanded
from jvdm.data import formats
from jvdm.data.archives import fetch, progress
from jvdm.data.dataset import Dataset
from jvdm.data.published import PREPARED_VERSION, PUBLISHED

SPLITS = ("train", "test")


def load_published(name: str, data_dir: str = "") -> Dataset:
    """A published dataset, prepared first if necessary.

    Args:
        name: a key of `PUBLISHED`.
        data_dir: by default `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Returns:
        The dataset; its arrays are read-only memory maps.

    Raises:
        UserError: an archive is missing or damaged, or the folder cannot be written.
    """
    root = expanded(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", "config.data.data_dir"
    )
    folder = root / "jvdm_images" / name / PREPARED_VERSION
    if any(_cached(name, folder, split) is None for split in SPLITS):
        try:
            # One process of this machine prepares while the others wait.
            lock = root / "jvdm_images" / f"{name}.lock"
            with locks.exclusive(lock, wait=True, purpose=f"prepares {name} there"):
                _prepare(name, root, folder)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"cannot prepare {name} under {root} ({reason}); free or change data_dir"
            ) from error
    arrays = {split: _cached(name, folder, split) for split in SPLITS}
    return Dataset(name=name, version=PREPARED_VERSION, num_levels=256, **arrays)  # pyright: ignore


def _prepare(name: str, root: Path, folder: Path) -> None:
    missing = [split for split in SPLITS if _cached(name, folder, split) is None]
    if not missing:  # another process was faster
        return
    paths = {}
    if not folder.is_dir():
        manual = root / "downloads" / "manual"
        archives = {split: PUBLISHED[name].split(split).archive for split in SPLITS}
        found = {archive: fetch(archive, manual) for archive in dict.fromkeys(archives.values())}
        paths = {split: found[archives[split]] for split in SPLITS}
    from jvdm.data import builder  # imports tensorflow-datasets, which takes a second

    if paths:
        builder.prepare(name, root, paths)
    for split in missing:
        _decode(name, builder.read_png(name, root, split), folder, split)


def _shape(name: str, split: str) -> tuple[int, ...]:
    images = PUBLISHED[name]
    return (images.split(split).num_images, *images.image_shape)


def _cached(name: str, folder: Path, split: str) -> np.ndarray | None:
    """The decoded split, or None where it is missing or incomplete."""
    try:
        array = np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == _shape(name, split) and array.dtype == np.uint8 else None


def _decode(name: str, files: Iterator[bytes], folder: Path, split: str) -> None:
    shape = _shape(name, split)
    temporary = folder / f"{split}.npy.partial"
    try:
        # Written, not mapped: a full disk is then an error and not a bus fault.
        with temporary.open("wb") as file, progress(shape[0], f"decoding {split}", unit="images") as bar:
            layout = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, layout)
            for image in _images(files, shape, folder):
                file.write(image.tobytes())
                bar.update()
        os.replace(temporary, folder / f"{split}.npy")
    finally:
        temporary.unlink(missing_ok=True)


def _images(files: Iterator[bytes], shape: tuple[int, ...], folder: Path) -> Iterator[np.ndarray]:
    count = 0
    height, width, channels = shape[1:]
    try:
        for data in files:
            yield formats.decode_png(data, (height, width, channels))
            count += 1
    except Exception as error:  # ArrayRecord and TFDS raise whatever their C++ code does
        raise _unreadable(folder, one_line(error)) from error
    if count != shape[0]:
        raise _unreadable(folder, f"{count} images, not {shape[0]}")


def _unreadable(folder: Path, reason: str) -> UserError:
    return UserError(f"the dataset prepared in {folder} cannot be read ({reason}); remove that folder")
