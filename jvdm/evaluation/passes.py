"""One pass over images: every image exactly once, in order, resumable, whatever the estimator.

An estimator yields *rows* (`jvdm.evaluation.rows`), chunk by chunk.

A pass that was stopped goes on where it was: each chunk is a file in `<record>.partial/`, made when the
chunk is done, and the folder belongs to one set of settings: another set starts anew.
"""

import contextlib
import hashlib
import io
import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jvdm.core import locks, preemption, processes, sharding
from jvdm.core.errors import UserError
from jvdm.core.files import read_arrays, write_atomically
from jvdm.core.records import Batch, as_batch, take
from jvdm.data import evaluation_batches
from jvdm.evaluation.estimator import Estimator, Examples
from jvdm.evaluation.rows import Rows, bits_per_dim

log = logging.getLogger("jvdm")

Params = Any


class Batches:
    """The images of a pass, chunk by chunk, on the devices.

    Args:
        mesh: has a `data` axis.
        batch_size: images at a time, over all devices; rounded up to a multiple of their number.
        field: the config's field that holds it, for the error.

    Raises:
        UserError: no images at a time.
    """

    def __init__(self, mesh: Mesh, batch_size: int, field: str):
        self._batch_size = sharding.evaluation_batch(field, batch_size, mesh)
        self._by_example = sharding.split(mesh)

    def __call__(
        self, examples: Examples, first: int = 0, *, start: int = 0, index: np.ndarray | None = None
    ) -> Iterator[tuple[Batch, jax.Array, int]]:
        """(batch, index of each image, how many of them are not padding) of the images from `first` on.

        Args:
            examples: N images, [N, *data_shape] or a `Batch` of them and what is known of each.
            first: the images before it are left out.
            start: the index of the first of all examples.
            index: [N] by which an image's key is folded; start and its position by default.
        """
        whole = as_batch(examples)
        index = np.arange(start, start + len(whole.x), dtype=np.int32) if index is None else index
        source = evaluation_batches(
            take(whole, slice(first, None)),
            batch_size=self._batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        remaining = len(whole.x) - first
        for batch in source:
            host = batch.examples, index[batch.index + first]
            # Padding is at the end of the last batch.
            yield *sharding.to_devices(host, self._by_example), min(self._batch_size, remaining)
            remaining -= self._batch_size


def digest(settings: Any) -> str:
    """Eight hex digits that tell JSON values apart, for a file's name."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


class Store:
    """The chunks of an unfinished pass on disk. The first process writes, all of them read.

    Passes that depend on other things have other folders, so that each may be stopped and continued whatever
    else is computed in between.

    Args:
        folder: its parent.
        name: of the pass, to which a digest of the settings is added.
        settings: whatever the numbers depend on, as JSON values.

    Attributes:
        name: with the digest.
    """

    def __init__(self, folder: pathlib.Path, name: str, settings: dict[str, Any]):
        self.name = f"{name}_{digest(settings)}"
        self._folder = folder / f"{self.name}.partial"
        self._settings = json.dumps(settings, indent=2, sort_keys=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Work on the pass inside the block, to its end or until the process is asked to stop.

        Raises:
            UserError: another process is at work on the same pass, or the folder cannot be written.
        """
        with contextlib.ExitStack() as stack:
            if processes.is_main():
                stack.enter_context(self._lock())
                path = self._folder / "settings.json"
                # Of a digest that is the same by chance, or damaged.
                if not (path.is_file() and path.read_bytes() == self._settings.encode()):
                    for chunk in self._folder.glob("*.npz"):
                        chunk.unlink()
                    write_atomically(path, lambda file: file.write(self._settings.encode()))
            processes.wait_for_all("store")
            stack.enter_context(preemption.working())
            yield

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            try:
                purpose = "computes the same"
                stack.enter_context(locks.exclusive(self._folder / ".lock", wait=False, purpose=purpose))
            except locks.Busy as error:
                raise UserError(
                    f"{self._folder}: another process computes the same numbers; wait until it has finished"
                ) from error
            except OSError as error:
                raise UserError(f"cannot write {self._folder}: {error.strerror or error}") from error
            yield

    def load(self) -> list[Rows]:
        """The chunks from the first image on, up to a gap or a damaged file; the same in all processes."""
        chunks: list[Rows] = []
        done = 0
        while (path := self._path(done)).is_file():
            rows = read_arrays(path)
            if not rows or not len(next(iter(rows.values()))):
                break
            chunks.append(rows)
            done += len(next(iter(rows.values())))
        return chunks[: processes.least(len(chunks))]

    def save(self, first: int, rows: Rows) -> None:
        """Keep the chunk that starts at image `first`."""
        if not processes.is_main():
            return
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **rows)
        write_atomically(self._path(first), lambda file: file.write(buffer.getvalue()))

    def discard(self) -> None:
        """Remove the folder."""
        if processes.is_main():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, first: int) -> pathlib.Path:
        return self._folder / f"{first:09d}.npz"


def run(
    estimator: Estimator,
    params: Params,
    examples: Examples,
    key: jax.Array,
    *,
    quantity: str = "bpd",
    on_chunk: Callable[[int, dict[str, float]], None] | None = None,
    store: Store | None = None,
    start: int = 0,
) -> Rows:
    """The rows of every image.

    Args:
        estimator: what is computed.
        params: the model's.
        examples: N images, as in `Batches`.
        key: the root from which image i's key is folded.
        quantity: what the bound is called in progress.
        on_chunk: called after every chunk with the images done and the running means: the bound, its standard
            error `err` over images, and what else the estimator shows.
        store: where finished chunks are kept and found again.
        start: the index of the first image.

    Raises:
        UserError: the bound of an image is not finite, or a chunk cannot be written.
        Preempted: the process was asked to stop.
    """
    num_images = len(as_batch(examples).x)
    chunks = store.load() if store else []
    done = sum(len(chunk[estimator.terms[0]]) for chunk in chunks)
    if done:
        log.info("continuing after image %d of %d", done, num_images)
    means = [bits_per_dim(chunk, estimator.terms).mean(axis=1) for chunk in chunks]
    for chunk in estimator.rows(params, examples, key, first=done, start=start):
        image_bpd = bits_per_dim(chunk, estimator.terms).mean(axis=1)
        bad = np.flatnonzero(~np.isfinite(image_bpd))
        if bad.size:
            raise UserError(
                f"the {estimator.name} bound of image {done + bad[0]} (and of {bad.size - 1} more in its "
                "batch) is not finite: the weights, or the ends of gamma, are broken"
            )
        if store:
            store.save(done, chunk)
        chunks.append(chunk)
        means.append(image_bpd)
        done += len(image_bpd)
        if done < num_images:
            preemption.check()
        if on_chunk is not None:
            on_chunk(done, _shown(estimator, quantity, chunks, np.concatenate(means)))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _shown(
    estimator: Estimator, quantity: str, chunks: list[Rows], image_bpd: np.ndarray
) -> dict[str, float]:
    values = {quantity: float(image_bpd.mean())}
    if len(image_bpd) > 1:
        values["err"] = float(image_bpd.std(ddof=1) / np.sqrt(len(image_bpd)))
    for name in estimator.shown:
        values[name] = float(np.mean(np.concatenate([np.ravel(chunk[name]) for chunk in chunks])))
    return values
