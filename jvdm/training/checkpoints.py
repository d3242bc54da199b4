"""Checkpoints of the train state: asynchronous, the newest and the best kept.

`<workdir>/checkpoints/<step>/` is written by Orbax, which gives a folder its final name only when all
of it is on disk: a save that fails leaves the previous checkpoints as they were.
"""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jvdm.errors import UserError
from jvdm.training.step import TrainState

METRIC = "test_bpd"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "…"


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
        )
        self.folder = folder.absolute()
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        # Orbax reads what is there, and raises many types for damaged files.
        except Exception as error:
            raise UserError(
                f"{self.folder}: not a readable folder of checkpoints ({_one_line(error)}); "
                "remove the damaged one, most likely the newest, to continue from the one before"
            ) from error

    def latest(self) -> int | None:
        """The newest step saved, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, bits_per_dim: float | None) -> None:
        """Start saving; `bits_per_dim` decides which checkpoint is the best, None never is it.

        Raises:
            UserError: this save or the one before it could not be written.
        """
        metric = float("inf") if bits_per_dim is None else bits_per_dim
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics={METRIC: metric})
        # Orbax and its storage raise many types for a full or vanished disk, some of them in its threads.
        except Exception as error:
            raise self._save_error(step, error) from error

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
        """The state saved at `step`, with the shapes and shardings of `like`."""
        return restore(self.folder / str(step), like)

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
            return checkpointer.restore(path / "default", args=arguments)
    # Orbax and its storage raise many types for damaged files.
    except Exception as error:
        raise UserError(
            f"{path}: not a readable checkpoint of this model ({_one_line(error)}); "
            "if it is damaged, remove it to continue from the one before"
        ) from error


def _check_shapes(saved: Any, like: Any) -> None:
    """Refuse another structure or other shapes, which a partial restore would fill or cut.

    Raises:
        ValueError: naming the first leaf that differs.
    """

    def shapes(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda a: hasattr(a, "shape"))
        return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(a.shape) for path, a in leaves}

    have, want = shapes(saved), shapes(like)
    for leaf in sorted(have.keys() | want.keys()):
        if have.get(leaf) != want.get(leaf):
            raise ValueError(f"{leaf} is saved as {have.get(leaf)}, the model has {want.get(leaf)}")


def find(workdir: pathlib.Path, checkpoint: str | None) -> pathlib.Path:
    """The checkpoint to use.

    Args:
        workdir: of the run.
        checkpoint: a path to one checkpoint, to a `checkpoints` folder or to a workdir; None is
            the newest of `workdir`.

    Raises:
        UserError: there is none.
    """
    path = pathlib.Path(checkpoint) if checkpoint else workdir
    if path.name.isdigit() and path.is_dir():
        return path.absolute()
    folder = path if path.name == "checkpoints" else path / "checkpoints"
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    if not steps:
        given = f"--checkpoint={checkpoint}" if checkpoint else f"--workdir={workdir}"
        raise UserError(
            f"{given}: no checkpoint in {folder.absolute()}; give a folder <workdir>/checkpoints/<step>, "
            "or train first"
        )
    return (folder / str(max(steps))).absolute()
