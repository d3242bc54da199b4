"""Reading checkpoints: all of one, some of its fields, or whatever fits; and finding them."""

import json
import logging
import pathlib
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from jvdm import trees
from jvdm.errors import UserError
from jvdm.training.integrity import checksums

log = logging.getLogger("jvdm")

CHECKSUMS = "checksums"


def one_line(error: BaseException) -> str:
    """What an error says, in at most 300 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "…"


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
            f"{path}: not a readable checkpoint of this model ({one_line(error)}); "
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
        steps = [step for step in steps_in(path.parent) if step < int(path.name)] if older else []
        for step in sorted(steps, reverse=True):
            try:
                found = restore(path.parent / str(step), like)
            except UserError:
                continue
            log.warning("WARNING: %s; taking the checkpoint of step %d", one_line(error), step)
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


def steps_in(folder: pathlib.Path) -> list[int]:
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
            have, want = trees.leaves(saved), trees.leaves(tree)
            taken = [name for name in want if name in have and have[name].shape == want[name].shape]
            like = {
                name: jax.ShapeDtypeStruct(want[name].shape, want[name].dtype, sharding=want[name].sharding)
                for name in taken
            }
            nested = trees.nest(like)
            read = {}
            if taken:
                arguments = ocp.args.PyTreeRestore(
                    item=nested,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(nested),
                    partial_restore=True,
                )
                read = trees.leaves(checkpointer.restore(path.absolute() / "default", args=arguments))
    # Orbax and its storage raise many types for damaged files.
    except Exception as error:
        raise UserError(f"{path}: not a readable checkpoint ({one_line(error)})") from error
    left = {
        name: f"saved as {tuple(have[name].shape)}, here {tuple(leaf.shape)}" if name in have else "not saved"
        for name, leaf in want.items()
        if name not in read
    }
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    values = [read.get(trees.name_of(path), leaf) for path, leaf in leaves]
    return Fitted(jax.tree.unflatten(jax.tree.structure(tree), values), taken, left)


def _check_shapes(saved: Any, like: Any) -> None:
    """Refuse another structure or other shapes, which a partial restore would fill or cut.

    Raises:
        ValueError: naming the first leaf that differs.
    """
    have, want = ({name: tuple(leaf.shape) for name, leaf in trees.leaves(t).items()} for t in (saved, like))
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
    steps = steps_in(folder)
    if not steps:
        given = f"{flag}={checkpoint}" if checkpoint else f"--workdir={workdir}"
        raise UserError(
            f"{given}: no checkpoint in {folder.absolute()}; give a folder <workdir>/checkpoints/<step>, "
            "or train first"
        )
    return (folder / str(max(steps))).absolute()
