"""What every source returns: two splits of examples, discrete with a known number of levels or continuous."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jvdm.core.errors import UserError, unknown

if TYPE_CHECKING:  # it imports jax, which --help does not need
    from jvdm.core.records import Batch, Conditioning

_CHUNK_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Examples of one shape, in most cases images, in two splits.

    Attributes:
        name: the source, without the folders of a path ("digits", "npz:cifar10_subset.npz").
        version: the version of the source, or "-" where it has none.
        num_levels: K; every value is one of 0..K-1. 0 is continuous data.
        train: uint8 [N, *data_shape], possibly a read-only memory map, or float32 of continuous data.
        test: uint8 [M, *data_shape], or float32 as for `train`.
        train_conditioning, test_conditioning: what the source says about each example of a split apart from
            its values, such as labels (`jvdm.core.records.Conditioning` of numpy arrays); None for nothing.
        log_density: [n, *data_shape] -> [n] the true log-density in nats where it is known; None elsewhere.
    """

    name: str
    version: str
    num_levels: int
    train: np.ndarray
    test: np.ndarray
    train_conditioning: "Conditioning | None" = None
    test_conditioning: "Conditioning | None" = None
    log_density: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of one example, (H, W, C) of an image."""
        return self.train.shape[1:]

    def split(self, split: str) -> np.ndarray:
        """The values of "train" or "test", [N, *data_shape].

        Raises:
            UserError: another name.
        """
        if split not in ("train", "test"):
            raise unknown("split", split, ("train", "test"))
        return self.train if split == "train" else self.test

    def conditioning(self, split: str) -> "Conditioning | None":
        """What is known of the examples of a split apart from their values."""
        return self.train_conditioning if split == "train" else self.test_conditioning

    def examples(self, split: str) -> "Batch":
        """A split, with what is known of each example.

        Raises:
            UserError: another name.
        """
        return examples(self.split(split), self.conditioning(split))

    def fingerprint(self, split: str) -> str:
        """The first 16 hex digits of the SHA-256 of a split's shape and values, and of what else is known.

        The split is read in chunks at every call; nothing is hashed until it is requested.

        Raises:
            UserError: an unknown split.
        """
        return fingerprint(self.split(split), self.conditioning(split))


def examples(x: np.ndarray, conditioning: "Conditioning | None") -> "Batch":
    """Values, and what is known of each of them; None for nothing."""
    from jvdm.core.records import Batch

    values: Any = x
    return Batch(values) if conditioning is None else Batch(values, conditioning)


def fingerprint(images: np.ndarray, conditioning: "Conditioning | None" = None) -> str:
    """The first 16 hex digits of the SHA-256 of shape, values (in chunks) and what else is known."""
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    for chunk in chunks(images):
        digest.update(np.ascontiguousarray(chunk).data)
    for name, array in () if conditioning is None else conditioning._asdict().items():
        if array is not None:
            digest.update(f"{name}{array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def check_images(images: np.ndarray, split: str, num_levels: int, where: str) -> None:
    """Refuse arrays that are not images of `num_levels` levels.

    Args:
        images: of one split.
        split: its name, for the message.
        num_levels: K.
        where: the file or folder it was read from, for the message.

    Raises:
        UserError: wrong dtype, rank or shape, no images, or values of `num_levels` and above.
    """
    if images.dtype == np.uint8 and (images.ndim != 4 or 0 in images.shape[1:]):
        raise UserError(
            f"{where}: the {split} images have shape {list(images.shape)}; it must be [N, H, W, C], "
            "with C = 1 for grayscale"
        )
    if looks_channels_first(images):
        raise UserError(
            f"{where}: the {split} images have shape {list(images.shape)}, which looks like [N, C, H, W]; it "
            "must be [N, H, W, C]: numpy.moveaxis(images, 1, -1)"
        )
    check_values(images, split, num_levels, where, what="images")


def looks_channels_first(x: np.ndarray) -> bool:
    """Whether an array [N, ...] looks like images [N, C, H, W]."""
    return x.ndim == 4 and x.shape[1] in (1, 3, 4) and min(x.shape[2:]) > 4


def check_values(x: np.ndarray, split: str, num_levels: int, where: str, *, what: str = "data") -> None:
    """Refuse arrays that are not data of `num_levels` levels, of any shape.

    Args:
        x: of one split.
        split: its name, for the message.
        num_levels: K; 0 is continuous data.
        where: what it was read from, for the message.
        what: what the values are called in messages.

    Raises:
        UserError: wrong dtype or shape, no examples, values of `num_levels` and above, or not finite.
    """
    dtype = np.dtype(np.uint8 if num_levels else np.float32)
    if x.dtype != dtype:
        kind = "discrete" if num_levels else "continuous"
        raise UserError(
            f"{where}: the {split} {what} have dtype {x.dtype}; they must be {dtype}, because "
            f"num_levels={num_levels} is of {kind} data"
        )
    if x.ndim == 0 or 0 in x.shape[1:]:
        raise UserError(f"{where}: the {split} {what} have shape {list(x.shape)}; it must be [N, ...]")
    if len(x) == 0:
        raise UserError(f"{where}: the {split} split holds no {what}; it must hold at least one")
    if not num_levels:
        if not all(np.isfinite(chunk).all() for chunk in chunks(x)):
            raise UserError(f"{where}: the {split} {what} hold numbers that are not finite")
    elif num_levels < 256:
        highest = max(int(chunk.max()) for chunk in chunks(x))
        if highest >= num_levels:
            raise UserError(
                f"{where}: the {split} {what} hold the value {highest}; with "
                f"num_levels={num_levels} the highest is {num_levels - 1}"
            )


def check_conditioning(known: Any, num: int, where: str) -> None:
    """Refuse what is known of examples apart from their values, if it is not as it should be.

    Args:
        known: `jvdm.core.records.Conditioning` of numpy arrays, or None.
        num: the number of examples.
        where: where they come from, for the message.

    Raises:
        UserError: another type, other lengths, labels that are not integers from 0, or values not finite.
    """
    if known is None:
        return
    from jvdm.core.records import Conditioning  # here: it imports jax, which --help does not need

    if not isinstance(known, Conditioning):
        raise UserError(f"{where}: the conditioning is a {type(known).__name__}; it must be a Conditioning")
    for name, array in known._asdict().items():
        if array is None:
            continue
        if not hasattr(array, "dtype") or array.shape != (num,):
            found = list(array.shape) if hasattr(array, "dtype") else type(array).__name__
            raise UserError(f"{where}: {name} is of {found}; it must be an array of {[num]}")
        whole = np.issubdtype(array.dtype, np.integer)
        if name == "labels" and not (whole and np.min(array, initial=0) >= 0):
            raise UserError(f"{where}: the labels must be integers from 0, not {array.dtype}")
        if not whole and not (np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all()):
            raise UserError(f"{where}: {name} must be finite numbers, not {array.dtype}")


def shape_text(shape: tuple[int, ...]) -> str:
    """The shape of an example in words: "8x8x1", "scalars"."""
    return "x".join(map(str, shape)) or "scalars"


def check_dataset(dataset: Dataset, where: str, check: Callable[..., None] = check_values) -> Dataset:
    """Return the dataset if both splits are valid.

    Args:
        dataset: what a source read.
        where: the file or folder it was read from, for the message.
        check: of one split, `check_values` or `check_images`.

    Raises:
        UserError: wrong dtype or shape, no examples, values of `num_levels` and above, or something known of
            another number of examples.
    """
    if dataset.num_levels != 0 and not 2 <= dataset.num_levels <= 256:
        raise UserError(
            f"{where}: num_levels is {dataset.num_levels}; it must be from 2 to 256, or 0 for continuous data"
        )
    for split in ("train", "test"):
        check(dataset.split(split), split, dataset.num_levels, where)
        check_conditioning(dataset.conditioning(split), len(dataset.split(split)), f"{where}, {split} split")
    if dataset.test.shape[1:] != dataset.train.shape[1:]:
        raise UserError(
            f"{where}: test examples have shape {list(dataset.test.shape[1:])} and train examples "
            f"{list(dataset.train.shape[1:])}; they must be equal"
        )
    return dataset


def chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    """The array in parts of about 16 MiB along its first axis."""
    rows = max(1, _CHUNK_BYTES // max(1, images[:1].nbytes))
    return (images[start : start + rows] for start in range(0, len(images), rows))
