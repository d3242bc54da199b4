"""Checkpoints of a run: saved asynchronously, the newest and the best kept.

`<workdir>/checkpoints/<step>/` is all that a resume needs, so that a copy of it is complete:

    state/     the arrays of the train state, by Orbax
    pending/   what the step leaves undone (`jvdm.runs.pending`)
    metrics/   the metric that decides which checkpoint is the best, a checksum of every array
               (`jvdm.runs.integrity`), and the format

Orbax gives a folder its final name only when all of it is on disk: a save that fails leaves the previous
checkpoints as they were. Only `amend` changes a checkpoint later, each of its small files at one stroke. A
damaged checkpoint is moved to `<workdir>/damaged_checkpoints/`, and the one before it takes its place.
"""

import json
import logging
import math
import os
import pathlib
import shutil
import uuid
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jvdm.core import formats, processes
from jvdm.core.errors import UserError
from jvdm.core.files import write_atomically
from jvdm.runs import pending as pending_lib
from jvdm.runs.description import CHECKSUMS, STATE, read_description, short
from jvdm.runs.integrity import checksums
from jvdm.runs.pending import Pending
from jvdm.runs.restoring import first_readable, restore, steps_in
from jvdm.runs.state import TrainState

log = logging.getLogger("jvdm")

METRIC = "test_bpd"


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its own handling of preemption, which `jvdm.core.preemption` has.

    Orbax also asks at every save, with the step, but JAX expects a single ascending count from all who ask:
    several processes would agree on a point that never comes.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


def kept(text: str) -> list[Any]:
    """Orbax's policies for `config.training.keep_checkpoints`.

    Args:
        text: "all"; or "newest:N", "every:STEPS", or both with a comma. The newest is kept in any case.

    Raises:
        UserError: it is none of these.
    """
    number = {"newest": 1, "every": 0}
    for part in [] if text == "all" else text.split(","):
        name, _, value = part.strip().partition(":")
        if name not in number or not value.isdecimal() or int(value) < 1:
            raise UserError(
                f"config.training.keep_checkpoints is {text!r}: give all, newest:N, every:STEPS, or "
                "newest:N,every:STEPS"
            )
        number[name] = int(value)
    if text == "all":
        number["every"] = 1
    policies: list[Any] = [checkpoint_managers.LatestN(number["newest"])]
    if number["every"]:
        policies.append(checkpoint_managers.EveryNSteps(number["every"]))
    return policies


class Resumed(NamedTuple):
    """What a run resumes from.

    Attributes:
        state: as it was saved.
        step: of the checkpoint.
        pending: what that step leaves undone.
    """

    state: TrainState
    step: int
    pending: Pending


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: `<workdir>/checkpoints`.
        keep: which are kept, as in `config.training.keep_checkpoints`.

    Raises:
        UserError: the folder cannot be read, or holds a checkpoint of a newer format; or `keep` cannot.
    """

    def __init__(self, folder: pathlib.Path, *, keep: str = "newest:2"):
        policies = [
            *kept(keep),
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
                f"{self.folder}: not a readable folder of checkpoints ({short(error)})"
            ) from error

    def latest(self) -> int | None:
        """The newest step saved, or None."""
        return self._manager.latest_step()

    def best(self) -> tuple[int, float] | None:
        """The step with the lowest metric of those that are kept, and the metric; None without one."""
        step = self._manager.best_step()
        if step is None:
            return None
        metrics: Any = self._manager.metrics(step)
        return (step, metrics[METRIC]) if math.isfinite(metrics[METRIC]) else None

    def steps(self) -> set[int]:
        """The steps of all checkpoints, those being written included."""
        return set(self._manager.all_steps())

    def save(
        self,
        state: TrainState,
        step: int,
        bits_per_dim: float | None,
        pending: Pending = pending_lib.NOTHING,
    ) -> None:
        """Start saving.

        Args:
            state: all of it.
            step: one without a checkpoint.
            bits_per_dim: decides which checkpoint is the best; one with None never is.
            pending: what the step leaves undone.

        Raises:
            UserError: this save or the one before it could not be written.
        """
        metric = float("inf") if bits_per_dim is None else bits_per_dim
        metrics = {METRIC: metric, CHECKSUMS: checksums(state), formats.FIELD: formats.CHECKPOINT}
        items = {
            STATE: ocp.args.StandardSave(state),
            pending_lib.ITEM: ocp.args.JsonSave(pending_lib.to_json(pending)),
        }
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)
        # Orbax and its storage raise many types for a full or vanished disk, some of them in its threads.
        except Exception as error:
            raise self._save_error(step, error) from error

    def amend(self, step: int, *, bits_per_dim: float | None = None, pending: Pending | None = None) -> None:
        """Record work done after the checkpoint of `step` was saved.

        The metric is written first: if the process ends between the two, the evaluation is still pending, and
        is done again with the same result.

        Args:
            step: of a checkpoint.
            bits_per_dim: of its evaluation; None leaves the metric alone.
            pending: what is left to do; None leaves that alone.

        Raises:
            UserError: it could not be written.
        """
        self.wait()
        if processes.is_main():
            checkpoint = self.folder / str(step)
            if bits_per_dim is not None:
                path = checkpoint / "metrics" / "metrics"
                text = json.dumps(json.loads(path.read_text()) | {METRIC: bits_per_dim})
                write_atomically(path, lambda file: file.write(text.encode()))
            if pending is not None:
                pending_lib.write(checkpoint, pending)
        processes.wait_for_all("amended")
        self._manager.reload()

    def wait(self) -> None:
        """Wait until every save is on disk.

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

    def restore_newest(self, like: TrainState) -> Resumed | None:
        """The newest checkpoint that can be read; None where there is none.

        Newer ones that are damaged are put aside.

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
                "WARNING: the checkpoint %s is damaged and was moved to %s: %s",
                bad.path,
                bad.now,
                short(bad.why),
            )
        if self._damaged:
            log.warning("WARNING: going on from the checkpoint of step %d", found.step)
        processes.wait_for_all("restored")
        self._manager.reload()
        return Resumed(found.state, found.step, pending_lib.read(self.folder / str(found.step)))

    def close(self) -> None:
        """Wait, then release the manager's threads."""
        self.wait()
        self._manager.close()

    def _save_error(self, step: int | None, error: BaseException) -> UserError:
        kept = [s for s in self._manager.all_steps() if (self.folder / str(s)).is_dir() and s != step]
        last = f"; the checkpoint of step {max(kept)} is kept" if kept else ""
        return UserError(f"{self.folder}: saving a checkpoint failed ({short(error)}){last}")


def check_saves(workdir: pathlib.Path, state: TrainState) -> None:
    """Save a state in a workdir, read it back, and remove it, so that no run starts whose saves are lost.

    Args:
        workdir: of the run; all processes see the same one.
        state: all of it, with the shardings of the run.

    Raises:
        UserError: what was saved is not what is read.
    """
    folder = workdir / ".trial" / "checkpoints"
    if processes.is_main():
        shutil.rmtree(folder.parent, ignore_errors=True)  # of a process that was killed
    processes.wait_for_all("trial")
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    try:
        trial = Checkpoints(folder)
        trial.save(state, 0, None)
        trial.close()
        restore(folder / "0", like)
    except UserError as error:
        odd = sorted(set("[]\\") & set(str(workdir)))
        why = f"Orbax does not take {' '.join(odd)} in a path for letters" if odd else short(error)
        raise UserError(
            f"--workdir={workdir}: a checkpoint that is saved there does not come back ({why}); give another"
        ) from error
    finally:
        processes.wait_for_all("tried")
        if processes.is_main():
            shutil.rmtree(folder.parent, ignore_errors=True)


class _Damaged(NamedTuple):
    """A checkpoint that was moved aside: from where, to where, and why."""

    path: pathlib.Path
    now: pathlib.Path
    why: BaseException


def _put_unreadable_aside(folder: pathlib.Path) -> list[_Damaged]:
    """Move aside checkpoints without the files that Orbax reads from all of them, if at least one is left.

    Raises:
        UserError: none has it, or one is of a newer format.
    """
    bad = {}
    steps = steps_in(folder)
    for step in steps:
        try:
            read_description(folder / str(step))
        except formats.NewerFormat:
            raise
        except (OSError, ValueError) as error:
            bad[step] = error
    if bad and len(bad) == len(steps):
        error = bad[max(steps)]
        raise UserError(
            f"{folder}: none of the {len(steps)} checkpoints can be read; the newest: {short(error)}"
        ) from error
    return [_put_aside(folder / str(step), error) for step, error in bad.items()]


def _put_aside(path: pathlib.Path, why: BaseException) -> _Damaged:
    """Move a damaged checkpoint aside.

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
