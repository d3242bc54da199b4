"""Checkpoints of the train state: asynchronous, the newest and the best kept.

`<workdir>/checkpoints/<step>/` is written by Orbax, which gives a folder its final name only when all
of it is on disk: a save that fails leaves the previous checkpoints as they were. A checksum of every array is
saved with it (`jvdm.runs.integrity`), and compared with what is read. A damaged checkpoint is put aside,
into `<workdir>/damaged_checkpoints/`, and the one before it takes its place.
"""

import json
import logging
import os
import pathlib
import uuid
from typing import NamedTuple

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jvdm.core import processes
from jvdm.core.errors import UserError
from jvdm.core.files import write_atomically
from jvdm.runs.integrity import checksums
from jvdm.runs.restoring import CHECKSUMS, first_readable, one_line, restore, steps_in
from jvdm.runs.state import TrainState

log = logging.getLogger("jvdm")

METRIC = "test_bpd"


class _Manager(ocp.CheckpointManager):
    """Leaves preemption to `jvdm.core.preemption`.

    Orbax asks at every save too, by the step, and JAX expects one ascending count of whoever asks: in several
    processes they would agree on a point that never comes.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: `<workdir>/checkpoints`.
        keep: how many of the newest are kept; the best is kept besides.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int = 2):
        policies = [
            checkpoint_managers.LatestN(keep),
            checkpoint_managers.BestN(get_metric_fn=lambda m: m[METRIC], n=1, reverse=True),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            best_fn=lambda m: m[METRIC],
            best_mode="min",
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,  # of a process that was killed
        )
        self.folder = folder.absolute()
        self._damaged = _put_unreadable_aside(self.folder) if processes.is_main() else []
        processes.wait_for_all("checkpoints")
        try:
            self._manager = _Manager(self.folder, options=options)
        # Orbax reads what is there, and raises many types.
        except Exception as error:
            raise UserError(
                f"{self.folder}: not a readable folder of checkpoints ({one_line(error)})"
            ) from error

    def latest(self) -> int | None:
        """The newest step saved, or None."""
        return self._manager.latest_step()

    def steps(self) -> set[int]:
        """Of the checkpoints that are there, or being written."""
        return set(self._manager.all_steps())

    def save(self, state: TrainState, step: int, bits_per_dim: float | None) -> None:
        """Start saving; `bits_per_dim` decides which checkpoint is the best, None never is it.

        Raises:
            UserError: this save or the one before it could not be written.
        """
        metric = float("inf") if bits_per_dim is None else bits_per_dim
        metrics = {METRIC: metric, CHECKSUMS: checksums(state)}
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)
        # Orbax and its storage raise many types for a full or vanished disk, some of them in its threads.
        except Exception as error:
            raise self._save_error(step, error) from error

    def rate(self, step: int, bits_per_dim: float) -> None:
        """Say how good the checkpoint is that was saved at `step` before it was evaluated.

        Raises:
            UserError: it could not be written.
        """
        self.wait()
        if processes.is_main():
            path = self.folder / str(step) / "metrics" / "metrics"
            text = json.dumps(json.loads(path.read_text()) | {METRIC: bits_per_dim})
            write_atomically(path, lambda file: file.write(text.encode()))
        processes.wait_for_all("rated")
        self._manager.reload()

    def wait(self) -> None:
        """Return when every save is on disk.

        Raises:
            UserError: a save could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # as in `save`
            raise self._save_error(None, error) from error

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state saved at `step`, with the shapes and shardings of `like`.

        Raises:
            UserError: as `restore`.
        """
        return restore(self.folder / str(step), like)

    def restore_newest(self, like: TrainState) -> tuple[TrainState, int] | None:
        """The newest state that can be read, and its step; None where there is none.

        Damaged ones that are newer are put aside.

        Raises:
            UserError: there are checkpoints, none of which can be read.
        """
        steps = sorted(steps_in(self.folder), reverse=True)
        found = first_readable(self.folder, steps, like)
        if found.step is None:
            for bad in self._damaged:  # as they were found
                os.rename(bad.now, bad.path)
            if found.damaged:
                count, newest = len(steps) + len(self._damaged), found.damaged[0][1]
                raise UserError(f"none of the {count} checkpoints can be read; the newest: {newest}")
            return None
        self._damaged += [_put_aside(self.folder / str(bad), error) for bad, error in found.damaged]
        for bad in self._damaged:
            log.warning(
                "WARNING: the checkpoint %s is damaged and now lies in %s: %s",
                bad.path,
                bad.now,
                one_line(bad.why),
            )
        if self._damaged:
            log.warning("WARNING: going on from the checkpoint of step %d", found.step)
        processes.wait_for_all("restored")
        self._manager.reload()
        return found.state, found.step

    def close(self) -> None:
        """Wait, then release the manager's threads."""
        self.wait()
        self._manager.close()

    def _save_error(self, step: int | None, error: BaseException) -> UserError:
        kept = [s for s in self._manager.all_steps() if (self.folder / str(s)).is_dir() and s != step]
        last = f"; the checkpoint of step {max(kept)} is kept" if kept else ""
        return UserError(f"{self.folder}: saving a checkpoint failed ({one_line(error)}){last}")


class _Damaged(NamedTuple):
    """A checkpoint that was put aside: where it was, where it is, and why."""

    path: pathlib.Path
    now: pathlib.Path
    why: BaseException


def _put_unreadable_aside(folder: pathlib.Path) -> list[_Damaged]:
    """Move checkpoints away that have lost what Orbax must read of every one, if another has it.

    Raises:
        UserError: all of them have.
    """
    bad = {}
    steps = steps_in(folder)
    for step in steps:
        try:
            json.loads((folder / str(step) / "metrics" / "metrics").read_text())
        except (OSError, ValueError) as error:
            bad[step] = error
    if bad and len(bad) == len(steps):
        error = bad[max(steps)]
        raise UserError(
            f"{folder}: none of the {len(steps)} checkpoints can be read; the newest: {one_line(error)}"
        ) from error
    return [_put_aside(folder / str(step), error) for step, error in bad.items()]


def _put_aside(path: pathlib.Path, why: BaseException) -> _Damaged:
    """Move a damaged checkpoint out of the way.

    Raises:
        UserError: it cannot be moved.
    """
    target = path.parent.parent / "damaged_checkpoints" / f"{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        target.parent.mkdir(exist_ok=True)
        os.rename(path, target)
    except OSError as error:
        raise UserError(f"{path} is damaged, and cannot be moved away ({error.strerror})") from error
    return _Damaged(path, target, why)
