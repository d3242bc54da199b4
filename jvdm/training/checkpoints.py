"""Checkpoints of the train state: asynchronous, the newest and the best kept.

`<workdir>/checkpoints/<step>/` is written by Orbax, which gives a folder its final name only when all
of it is on disk: a save that fails leaves the previous checkpoints as they were.
"""

import pathlib
from typing import Any, NamedTuple

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


def restore_what_fits(path: pathlib.Path, tree: Any, sharding: Any) -> Fitted:
    """The leaves of a saved state whose name and shape are those of `tree`; the others are left alone.

    Args:
        path: of one checkpoint.
        tree: a dict of some of the fields of a `TrainState`, arrays.
        sharding: of what is read.

    Raises:
        UserError: the checkpoint is absent or damaged.
    """
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            saved = checkpointer.metadata(path.absolute() / "default").item_metadata.tree
            have, want = _leaves(saved), _leaves(tree)
            taken = [name for name in want if name in have and have[name].shape == want[name].shape]
            like = {
                name: jax.ShapeDtypeStruct(want[name].shape, want[name].dtype, sharding=sharding)
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
    if path.name.isdigit() and path.is_dir():
        return path.absolute()
    folder = path if path.name == "checkpoints" else path / "checkpoints"
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    if not steps:
        given = f"{flag}={checkpoint}" if checkpoint else f"--workdir={workdir}"
        raise UserError(
            f"{given}: no checkpoint in {folder.absolute()}; give a folder <workdir>/checkpoints/<step>, "
            "or train first"
        )
    return (folder / str(max(steps))).absolute()
