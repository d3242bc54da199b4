"""Batches of images: for training a function of (seed, step), for evaluation one pass in order.

Training reads an endless stream: the images in a new random order every epoch, cut into batches
that straddle epochs. The order of an epoch is a function of (seed, epoch), so that batch `step` is
found without reading those before it, and resuming needs nothing but the step.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jvdm.core.errors import UserError
from jvdm.data.augmentation import Augmentation, apply

if TYPE_CHECKING:
    from jvdm.core.records import Batch

# Philox streams of one seed: key [seed, step] for augmentation, [seed, _ORDERS + epoch] for orders.
_ORDERS = 2**63


@dataclasses.dataclass(frozen=True)
class EvaluationBatch:
    """A batch of one pass.

    Attributes:
        examples: x [b, *data_shape], and what is known of each.
        index: int32 [b] positions in the split, 0 for padding.
        mask: float32 [b], 1 for an image, 0 for padding.
    """

    examples: "Batch"
    index: np.ndarray
    mask: np.ndarray


class TrainBatches:
    """Shuffled, augmented training batches with random access by step.

    Args:
        examples: uint8 [N, H, W, C], possibly a memory map, or a `Batch` of them and what is known of each.
        batch_size: the global batch; it may exceed N.
        seed: of the order and the augmentation, from 0 to 2**63 - 1.
        augmentation: what is done to the images.
        process_index: which slice of each batch this process takes.
        process_count: the number of slices, a divisor of the batch size.

    Raises:
        UserError: a batch size that does not divide, a negative seed, or images the augmentation
            refuses.
    """

    def __init__(
        self,
        examples: "np.ndarray | Batch",
        *,
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        process_index: int = 0,
        process_count: int = 1,
    ):
        from jvdm.core.records import as_batch  # here: it imports jax, which --help does not need

        if not 0 <= seed < 2**63:
            raise UserError(f"the data seed is {seed}; it must be from 0 to 2**63 - 1")
        self._local = _process_slice(batch_size, process_index, process_count)
        self._examples = as_batch(examples)
        self._shape = self._examples.x.shape
        self._batch_size = batch_size
        self._seed = seed
        self._augmentation = augmentation
        # A batch rarely touches more than two epochs; the permutation of 1.28 million images takes
        # 0.1 s, once per epoch.
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)
        # Refuse a shape before the first step, not in it.
        augmentation.draw((0, *self._shape[1:]), np.random.default_rng(0))

    def __getitem__(self, step: int) -> "Batch":
        """The batch of a step.

        Args:
            step: from 0.

        Returns:
            x [b, *data_shape] of the data's dtype, b the batch size over the number of processes.
        """
        from jvdm.core.records import Batch, take

        if step < 0:
            raise IndexError(f"step {step} is negative")
        rng = np.random.Generator(_philox(self._seed, step))
        draws = self._augmentation.draw((self._batch_size, *self._shape[1:]), rng)
        batch = take(self._examples, self.positions(step)[self._local])
        if draws is None:
            return batch
        draws = draws.slice(self._local.start, self._local.stop)
        # Where the augmentation says nothing, what the source says holds.
        augmented: Any = batch.conditioning.augmented if draws.augmented is None else draws.augmented
        values: Any = batch.x
        x: Any = apply(values, draws)
        return Batch(x, batch.conditioning._replace(augmented=augmented))

    def positions(self, step: int) -> np.ndarray:
        """Which images the global batch of a step holds, int64 [batch_size]."""
        parts = []
        start, stop = step * self._batch_size, (step + 1) * self._batch_size
        while start < stop:
            epoch, offset = divmod(start, self._shape[0])
            part = self._order(epoch)[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def _shuffled(self, epoch: int) -> np.ndarray:
        rng = np.random.Generator(_philox(self._seed, _ORDERS + epoch))
        return rng.permutation(self._shape[0])


def num_evaluation_batches(num_images: int, batch_size: int) -> int:
    """How many batches `evaluation_batches` yields from the start."""
    return -(-num_images // batch_size)


def evaluation_batches(
    examples: "np.ndarray | Batch",
    *,
    batch_size: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[EvaluationBatch]:
    """Every image exactly once, in order, in batches of one size.

    Global batch k holds the positions k * batch_size and following; each process yields its
    contiguous slice of it. Padding at the end repeats image 0 under mask 0.

    Args:
        examples: as in `TrainBatches`.
        batch_size: the global batch.
        start: the first global batch to yield, to continue a pass.
        process_index: which slice of each batch this process takes.
        process_count: the number of slices, a divisor of the batch size.

    Returns:
        An iterator of batches of b images.

    Raises:
        UserError: a batch size that does not divide.
    """
    from jvdm.core.records import as_batch

    local = _process_slice(batch_size, process_index, process_count)
    whole = as_batch(examples)
    batches = range(start, num_evaluation_batches(len(whole.x), batch_size))
    return (_evaluation_batch(whole, k * batch_size + local.start, local.stop - local.start) for k in batches)


def _evaluation_batch(examples: "Batch", first: int, size: int) -> EvaluationBatch:
    from jvdm.core.records import take

    positions = np.arange(first, first + size)
    real = positions < len(examples.x)
    positions = np.where(real, positions, 0)
    return EvaluationBatch(take(examples, positions), positions.astype(np.int32), real.astype(np.float32))


def _process_slice(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"the batch size is {batch_size}; it must be a positive multiple of the number of processes, "
            f"{process_count}"
        )
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


def _philox(seed: int, stream: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed, stream], np.uint64))
