"""Checkpoints of the train state: asynchronous, the newest and the best kept.

`<workdir>/checkpoints/<step>/` is written by Orbax, which gives a folder its final name only when all
of it is on disk: a save that fails leaves the previous checkpoints as they were. A checksum of every array is
saved with it (`jvdm.training.integrity`), and compared with what is read. A damaged checkpoint is put aside,
into `<workdir>/damaged_checkpoints/`, and the one before it takes its place.
"""

import json
import logging
import os
import pathlib
import uuid
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jvdm import processes
from jvdm.errors import UserError
from jvdm.reporting.files import write_atomically
from jvdm.training.integrity import checksums
from jvdm.training.step import TrainState

log = logging.getLogger("jvdm")

METRIC = "test_bpd"
CHECKSUMS = "checksums"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "…"


class _Manager(ocp.CheckpointManager):
    """Leaves preemption to `jvdm.preemption`.

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
        if processes.is_main():
            _put_unreadable_aside(self.folder)
        processes.wait_for_all("checkpoints")
        try:
            self._manager = _Manager(self.folder, options=options)
        # Orbax reads what is there, and raises many types.
        except Exception as error:
            raise UserError(
                f"{self.folder}: not a readable folder of checkpoints ({_one_line(error)})"
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
        steps = sorted(_steps(self.folder), reverse=True)
        damaged: list[tuple[int, UserError]] = []
        for step in steps:
            state, failure = None, UserError(f"{self.folder / str(step)}: another process cannot read it")
            try:
                state = self.restore(step, like)
            except UserError as error:
                failure = error
            if not processes.least(state is not None):
                damaged.append((step, failure))
                continue
            assert state is not None
            for bad, error in damaged:
                put_aside(self.folder / str(bad), error)
            if damaged:
                processes.wait_for_all("damaged")
                self._manager.reload()
                log.warning("WARNING: going on from the checkpoint of step %d", step)
            return state, step
        if damaged:
            raise UserError(f"none of the {len(steps)} checkpoints can be read; the newest: {damaged[0][1]}")
        return None

    def close(self) -> None:
        """Wait, then release the manager's threads."""
        self.wait()
        self._manager.close()

    def _save_error(self, step: int | None, error: BaseException) -> UserError:
        kept = [s for s in self._manager.all_steps() if (self.folder / str(s)).is_dir() and s != step]
        last = f"; the checkpoint of step {max(kept)} is kept" if kept else ""
        return UserError(f"{self.folder}: saving a checkpoint failed ({_one_line(error)}){last}")


def restore(path: pathlib.Path, like: Any) -> Any:
    """A saved pytree, or a part of it.

    Args:
        path: of one checkpoint, `.../checkpoints/<step>`.
        like: shapes with shardings, in the structure that was saved; a dict of some of the fields of a
            `TrainState` reads those alone.

    Raises:
        UserError: the checkpoint is absent, damaged, or of another structure.
    """
    path = path.absolute()
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    arguments = ocp.args.PyTreeRestore(
        item=like,
        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
        partial_restore=isinstance(like, dict),
    )
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            if isinstance(like, dict):
                saved = checkpointer.metadata(path / "default").item_metadata.tree
                _check_shapes({field: saved[field] for field in like}, like)
            restored = checkpointer.restore(path / "default", args=arguments)
        _check_sums(path, restored)
        return restored
    # Orbax and its storage raise many types for damaged files.
    except Exception as error:
        raise UserError(
            f"{path}: not a readable checkpoint of this model ({_one_line(error)}); "
            "if it is damaged, remove it to continue from the one before"
        ) from error


def restore_readable(path: pathlib.Path, like: Any, *, older: bool) -> tuple[Any, pathlib.Path]:
    """What is saved at `path`, or, if that is damaged, in the newest checkpoint beside it that is not.

    Args:
        path: of one checkpoint.
        like: as of `restore`.
        older: whether one beside it will do.

    Returns:
        What was read, and where it was.

    Raises:
        UserError: as `restore`, of `path`, if none will do.
    """
    try:
        return restore(path, like), path
    except UserError as error:
        steps = [step for step in _steps(path.parent) if step < int(path.name)] if older else []
        for step in sorted(steps, reverse=True):
            try:
                found = restore(path.parent / str(step), like)
            except UserError:
                continue
            log.warning("WARNING: %s; taking the checkpoint of step %d", _one_line(error), step)
            return found, path.parent / str(step)
        raise


def _check_sums(path: pathlib.Path, tree: Any) -> None:
    """Refuse arrays that are not those that were saved.

    Raises:
        ValueError: naming the first of them.
    """
    saved = json.loads((path / "metrics" / "metrics").read_text()).get(CHECKSUMS)
    if saved is None:
        log.warning("WARNING: %s was written by an earlier version, without checksums", path)
        return
    for name, total in checksums(tree).items():
        if saved.get(name) != total:
            raise ValueError(f"{name} is not what was saved: its checksum differs")


def _put_unreadable_aside(folder: pathlib.Path) -> None:
    """Move checkpoints away that have lost what Orbax must read of every one, if another has it.

    Raises:
        UserError: all of them have.
    """
    bad = {}
    steps = _steps(folder)
    for step in steps:
        try:
            json.loads((folder / str(step) / "metrics" / "metrics").read_text())
        except (OSError, ValueError) as error:
            bad[step] = error
    if bad and len(bad) == len(steps):
        error = bad[max(steps)]
        raise UserError(
            f"{folder}: none of the {len(steps)} checkpoints can be read; the newest: {_one_line(error)}"
        ) from error
    for step, error in bad.items():
        put_aside(folder / str(step), error)


def put_aside(path: pathlib.Path, why: BaseException) -> None:
    """Move a damaged checkpoint out of the way, and say so.

    Raises:
        UserError: it cannot be moved.
    """
    target = path.parent.parent / "damaged_checkpoints" / f"{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        if processes.is_main():
            target.parent.mkdir(exist_ok=True)
            os.rename(path, target)
    except OSError as error:
        raise UserError(f"{path} is damaged, and cannot be moved away ({error.strerror})") from error
    log.warning("WARNING: the checkpoint %s is damaged and now lies in %s: %s", path, target, _one_line(why))


def _steps(folder: pathlib.Path) -> list[int]:
    """Of the finished checkpoints of a folder."""
    return [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []


class Fitted(NamedTuple):
    """What another checkpoint gave.

    Attributes:
        tree: like the one asked for.
        taken: names of leaves that come from the checkpoint.
        left: name -> why, of those that stay as they were.
    """

    tree: Any
    taken: list[str]
    left: dict[str, str]


def restore_what_fits(path: pathlib.Path, tree: Any) -> Fitted:
    """The leaves of a saved state whose name and shape are those of `tree`; the others are left alone.

    Args:
        path: of one checkpoint.
        tree: a dict of some of the fields of a `TrainState`, arrays that lie as what is read shall.

    Raises:
        UserError: the checkpoint is absent or damaged.
    """
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            saved = checkpointer.metadata(path.absolute() / "default").item_metadata.tree
            have, want = _leaves(saved), _leaves(tree)
            taken = [name for name in want if name in have and have[name].shape == want[name].shape]
            like = {
                name: jax.ShapeDtypeStruct(want[name].shape, want[name].dtype, sharding=want[name].sharding)
                for name in taken
            }
            nested = _nested(like)
            read = {}
            if taken:
                arguments = ocp.args.PyTreeRestore(
                    item=nested,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(nested),
                    partial_restore=True,
                )
                read = _leaves(checkpointer.restore(path.absolute() / "default", args=arguments))
    # Orbax and its storage raise many types for damaged files.
    except Exception as error:
        raise UserError(f"{path}: not a readable checkpoint ({_one_line(error)})") from error
    left = {
        name: f"saved as {tuple(have[name].shape)}, here {tuple(leaf.shape)}" if name in have else "not saved"
        for name, leaf in want.items()
        if name not in read
    }
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    values = [read.get(_name(path), leaf) for path, leaf in leaves]
    return Fitted(jax.tree.unflatten(jax.tree.structure(tree), values), taken, left)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _leaves(tree: Any) -> dict[str, Any]:
    """Whatever has a shape, by name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda a: hasattr(a, "shape"))
    return {_name(path): leaf for path, leaf in leaves}


def _nested(leaves: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _check_shapes(saved: Any, like: Any) -> None:
    """Refuse another structure or other shapes, which a partial restore would fill or cut.

    Raises:
        ValueError: naming the first leaf that differs.
    """
    have, want = ({name: tuple(leaf.shape) for name, leaf in _leaves(t).items()} for t in (saved, like))
    for leaf in sorted(have.keys() | want.keys()):
        if have.get(leaf) != want.get(leaf):
            raise ValueError(f"{leaf} is saved as {have.get(leaf)}, the model has {want.get(leaf)}")


def find(workdir: pathlib.Path, checkpoint: str | None, *, flag: str = "--checkpoint") -> pathlib.Path:
    """The checkpoint to use.

    Args:
        workdir: of the run.
        checkpoint: a path to one checkpoint, to a `checkpoints` folder or to a workdir; None is
            the newest of `workdir`.
        flag: where the user gave it, for the error.

    Raises:
        UserError: there is none.
    """
    path = pathlib.Path(checkpoint) if checkpoint else workdir
    if path.name.isdigit() and path.parent.name == "checkpoints" and path.is_dir():
        return path.absolute()
    folder = path if path.name == "checkpoints" else path / "checkpoints"
    steps = _steps(folder)
    if not steps:
        given = f"{flag}={checkpoint}" if checkpoint else f"--workdir={workdir}"
        raise UserError(
            f"{given}: no checkpoint in {folder.absolute()}; give a folder <workdir>/checkpoints/<step>, "
            "or train first"
        )
    return (folder / str(max(steps))).absolute()
