"""Training batches are a function of (seed, step); evaluation sees every image exactly once."""

import jax
import numpy as np
import pytest

from jvdm.core.errors import UserError
from jvdm.data import AUGMENTATIONS, TrainBatches, evaluation_batches, num_evaluation_batches


def numbered(count, size=4, channels=3):
    """Images that carry their position in the values of the first pixel."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(count) // 256
    images[:, 0, 0, 1] = np.arange(count) % 256
    return images


def positions(images):
    return images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 0, 1]


def batches(images, batch_size, *, seed=0, augmentation="none", **processes):
    built = AUGMENTATIONS.build(AUGMENTATIONS.spec(augmentation))
    return TrainBatches(images, batch_size=batch_size, seed=seed, augmentation=built, **processes)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.names())
def test_batch_depends_on_seed_and_step_only(augmentation):
    images = numbered(50)
    forward = [batches(images, 16, augmentation=augmentation)[step] for step in range(8)]
    reader = batches(images, 16, augmentation=augmentation)
    for step in (7, 0, 3, 3, 6):  # any order, one reader, caches warm or not
        batch = reader[step]
        np.testing.assert_array_equal(batch.x, forward[step].x)
        np.testing.assert_array_equal(batch.conditioning.augmented, forward[step].conditioning.augmented)
    other = batches(images, 16, augmentation=augmentation, seed=1)[0]
    assert (other.x != forward[0].x).any()
    assert (forward[1].x != forward[0].x).any()


@pytest.mark.parametrize(("count", "batch_size"), [(20, 5), (20, 7), (7, 20), (1, 3), (6, 6)])
def test_every_image_once_per_epoch(count, batch_size):
    images = numbered(count)
    reader = batches(images, batch_size)
    epochs = 4
    steps = -(-epochs * count // batch_size)
    stream = np.concatenate([positions(reader[step].x) for step in range(steps)])
    for epoch in range(epochs):
        seen = stream[epoch * count : (epoch + 1) * count]
        np.testing.assert_array_equal(np.sort(seen), np.arange(count))
    np.testing.assert_array_equal(reader.positions(1), stream[batch_size : 2 * batch_size])


def test_epochs_have_different_uniform_orders():
    count, epochs = 8, 800
    reader = batches(numbered(count), count)
    orders = np.stack([reader.positions(epoch) for epoch in range(epochs)])
    assert len(np.unique(orders, axis=0)) > 0.9 * epochs
    # How often image i comes at place j: 100 expected, standard deviation 9.4.
    table = np.stack([np.bincount(orders[:, place], minlength=count) for place in range(count)])
    assert np.abs(table - epochs / count).max() < 5 * 9.4
    # The order of seed s + 1 is not that of seed s one epoch later.
    assert (batches(numbered(count), count, seed=1).positions(0) != orders[1]).any()


def test_augmentation_does_not_repeat_from_step_to_step():
    images = np.repeat(numbered(1, size=8), 64, axis=0)
    reader = batches(images, 64, augmentation="vdm")
    first, second = reader[0], reader[1]
    assert (first.conditioning.augmented != second.conditioning.augmented).any()
    assert (first.x != second.x).any()


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.names())
@pytest.mark.parametrize("process_count", [1, 2, 4, 8])
def test_processes_together_read_the_global_batch(augmentation, process_count):
    images = numbered(37)
    whole = batches(images, 24, augmentation=augmentation)
    parts = [
        batches(images, 24, augmentation=augmentation, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    for step in (0, 1, 5):
        slices = [part[step] for part in parts]
        assert all(s.x.shape == (24 // process_count, 4, 4, 3) for s in slices)
        together = jax.tree.map(lambda *parts: np.concatenate(parts), *slices)
        jax.tree.map(np.testing.assert_array_equal, together, whole[step])


def test_batch_types_and_memory_maps(tmp_path):
    images = numbered(9)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    for augmentation in AUGMENTATIONS.names():
        batch = batches(mapped, 4, augmentation=augmentation)[0]
        assert type(batch.x) is np.ndarray
        assert batch.x.flags.writeable
        assert batch.x.dtype == np.uint8
        told = batch.conditioning.augmented
        assert (told is None) == (augmentation != "vdm") and (told is None or told.dtype == np.float32)
        np.testing.assert_array_equal(batch.x, batches(images, 4, augmentation=augmentation)[0].x)
    first = next(evaluation_batches(mapped, batch_size=4))
    assert type(first.examples.x) is np.ndarray
    np.testing.assert_array_equal(first.examples.x, images[:4])


def test_training_refuses_what_it_cannot_do():
    images = numbered(9)
    for batch_size in (0, -4, 6):
        with pytest.raises(UserError, match=f"batch size is {batch_size}; .* number of processes, 4"):
            batches(images, batch_size, process_count=4)
    with pytest.raises(UserError, match="seed is -1"):
        batches(images, 4, seed=-1)
    with pytest.raises(UserError, match="square images, not 2x4"):
        batches(images[:, :2], 4, augmentation="vdm")
    with pytest.raises(IndexError, match="step -1 is negative"):
        batches(images, 4)[-1]


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 31, 32])
@pytest.mark.parametrize(("batch_size", "process_count"), [(1, 1), (4, 1), (4, 2), (8, 8), (12, 3), (64, 4)])
def test_evaluation_sees_every_image_once(count, batch_size, process_count):
    images = numbered(count)
    passes = [
        list(evaluation_batches(images, batch_size=batch_size, process_index=i, process_count=process_count))
        for i in range(process_count)
    ]
    size = batch_size // process_count
    assert {len(p) for p in passes} == {num_evaluation_batches(count, batch_size)}
    index, real, values = [], [], []
    for group in zip(*passes, strict=True):  # global batches, put together from the processes
        for batch in group:
            assert batch.examples.x.shape == (size, 4, 4, 3)
            assert (batch.examples.x.dtype, batch.index.dtype, batch.mask.dtype) == (
                np.uint8,
                np.int32,
                np.float32,
            )
            index.append(batch.index)
            real.append(batch.mask)
            values.append(batch.examples.x)
    index, real, values = map(np.concatenate, (index, real, values))
    np.testing.assert_array_equal(index[:count], np.arange(count))
    np.testing.assert_array_equal(real, np.arange(len(real)) < count)
    np.testing.assert_array_equal(index[count:], 0)
    np.testing.assert_array_equal(values, images[index])
    assert len(real) - count < batch_size


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4])
def test_evaluation_continues_at_a_batch(start):
    images = numbered(10)
    whole = list(evaluation_batches(images, batch_size=4))
    rest = list(evaluation_batches(images, batch_size=4, start=start))
    assert len(rest) == max(0, len(whole) - start)
    for one, other in zip(whole[start:], rest, strict=True):
        for name in ("index", "mask"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        np.testing.assert_array_equal(one.examples.x, other.examples.x)


def test_evaluation_refuses_a_batch_that_does_not_divide():
    with pytest.raises(UserError, match="batch size is 6"):
        evaluation_batches(numbered(3), batch_size=6, process_count=4)
