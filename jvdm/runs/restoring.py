"""Find checkpoints and read them: entirely, some fields, or the leaves that fit."""

import contextlib
import logging
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict

from jvdm.core import processes, trees
from jvdm.core.errors import UserError
from jvdm.core.files import expanded
from jvdm.runs import pending
from jvdm.runs.description import Description, Unreadable, check_sums, describe, reading, short

log = logging.getLogger("jvdm")


def restore(path: pathlib.Path, like: Any) -> Any:
    """A saved pytree, or a part of it.

    Args:
        path: of one checkpoint, `.../checkpoints/<step>`.
        like: shapes with shardings, in the structure that was saved; a dict of some of the fields of a
            `TrainState` reads those alone. All of a state is readable only with what is pending.

    Raises:
        UserError: the checkpoint is `Unreadable`, or of a newer format.
    """
    path = path.absolute()
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    arguments = ocp.args.PyTreeRestore(
        item=like,
        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
        partial_restore=isinstance(like, dict),
    )
    with reading(path), ocp.PyTreeCheckpointer() as checkpointer:
        description = describe(path)
        if isinstance(like, dict):
            saved = _saved_tree(checkpointer, description)
            _check_shapes({field: saved[field] for field in like}, like)
        else:
            pending.read(path)
        restored = checkpointer.restore(description.arrays, args=arguments)
        check_sums(description, restored)
    return restored


class Readable(NamedTuple):
    """The first of some checkpoints that can be read.

    Attributes:
        step: its step; None if none can.
        state: what was read.
        damaged: step and error of those before it, in the first process; empty in others.
    """

    step: int | None
    state: Any
    damaged: list[tuple[int, Unreadable]]


def first_readable(folder: pathlib.Path, steps: Iterable[int], like: Any) -> Readable:
    """The first of `steps` that can be read; the first process decides for all.

    Processes may see different files, and a collective read of what one of them cannot read does not end. So
    where there are several, the first one reads alone before all of them do.

    Args:
        folder: of the checkpoints.
        steps: in the order of preference.
        like: as in `restore`.

    Raises:
        UserError: this process cannot read what the first one has read, or one is of a newer format.
    """
    several = jax.process_count() > 1
    step, state, damaged = None, None, []
    for candidate in steps if processes.is_main() else ():
        try:
            state = (_check_alone if several else restore)(folder / str(candidate), like)
            step = candidate
            break
        except Unreadable as error:
            damaged.append((candidate, error))
    if several:
        chosen = processes.of_main(-1 if step is None else step)
        step = None if chosen < 0 else chosen
        state = None if step is None else restore(folder / str(step), like)
    return Readable(step, state, damaged)


def restore_readable(path: pathlib.Path, like: Any, *, older: bool) -> tuple[Any, pathlib.Path]:
    """The state saved at `path`, or, if that is damaged, the newest intact checkpoint beside it.

    A training may replace the checkpoint while it is read: then the newest one is read.

    Args:
        path: of one checkpoint.
        like: as in `restore`.
        older: whether another one beside it will do.

    Returns:
        What was read, and where it was.

    Raises:
        UserError: as `restore`, of `path`, if none will do.
    """
    folder, newest = path.parent, int(path.name)
    while True:
        others = [step for step in steps_in(folder) if step < newest] if older else []
        found = first_readable(folder, [newest, *sorted(others, reverse=True)], like)
        replaced = older and found.step != newest
        newer = processes.of_main(max(steps_in(folder), default=0)) if replaced else 0
        if newer <= newest:
            break
        newest = newer
    if found.step is None:
        raise found.damaged[0][1] if found.damaged else UserError(f"{path}: process 0 cannot read it")
    if found.damaged:
        error = short(found.damaged[0][1])
        log.warning("WARNING: %s; taking the checkpoint of step %d", error, found.step)
    return found.state, folder / str(found.step)


def _check_alone(path: pathlib.Path, like: Any) -> None:
    """Read all of a checkpoint into the memory of this process, without the others.

    Raises:
        UserError: it is `Unreadable`, or of a newer format.
    """
    path = path.absolute()
    whole = not isinstance(like, dict)
    like = vars(like) if whole else like
    # Keys of random numbers are arrays to JAX alone.
    fields = {
        name: tree
        for name, tree in like.items()
        if not any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(tree))
    }
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix="alone"
    )
    arguments = ocp.args.PyTreeRestore(
        item=fields,
        restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), fields),
        partial_restore=True,
    )
    with reading(path):
        description = describe(path)
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            saved = _saved_tree(checkpointer, description)
            _check_shapes({field: saved[field] for field in fields}, fields)
            if whole:
                pending.read(path)
            read = checkpointer.restore(description.arrays, args=arguments)
        check_sums(description, read)


def steps_in(folder: pathlib.Path) -> list[int]:
    """The steps of the finished checkpoints in a folder."""
    return [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []


class Fitted(NamedTuple):
    """What was taken from another checkpoint.

    Attributes:
        tree: in the structure that was asked for.
        taken: names of the leaves from the checkpoint.
        left: names of the others, which are unchanged, and why.
    """

    tree: Any
    taken: list[str]
    left: dict[str, str]


def restore_what_fits(path: pathlib.Path, tree: Any) -> Fitted:
    """The leaves of a saved state whose name and shape are those of `tree`; the others are left alone.

    Args:
        path: of one checkpoint.
        tree: a dict of some of the fields of a `TrainState`: arrays, with the shardings to read with.

    Raises:
        UserError: the checkpoint is absent, damaged, or of a newer format.
    """
    path = path.absolute()
    with reading(path, of_model=""), ocp.PyTreeCheckpointer() as checkpointer:
        description = describe(path)
        saved = _saved_tree(checkpointer, description)
        have, want = trees.leaves(saved), trees.leaves(tree)
        taken = [name for name in want if name in have and have[name].shape == want[name].shape]
        like = {
            name: jax.ShapeDtypeStruct(want[name].shape, want[name].dtype, sharding=want[name].sharding)
            for name in taken
        }
        nested = unflatten_dict(like, sep="/")
        read = {}
        if taken:
            arguments = ocp.args.PyTreeRestore(
                item=nested,
                restore_args=ocp.checkpoint_utils.construct_restore_args(nested),
                partial_restore=True,
            )
            read = trees.leaves(checkpointer.restore(description.arrays, args=arguments))
            check_sums(description, unflatten_dict(read, sep="/"))
    left = {
        name: f"saved as {tuple(have[name].shape)}, here {tuple(leaf.shape)}" if name in have else "not saved"
        for name, leaf in want.items()
        if name not in read
    }
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    values = [read.get(trees.name_of(path), leaf) for path, leaf in leaves]
    return Fitted(jax.tree.unflatten(jax.tree.structure(tree), values), taken, left)


def _saved_tree(checkpointer: ocp.Checkpointer, description: Description) -> Any:
    """The names and shapes of the arrays of a checkpoint.

    Raises:
        ValueError: they are damaged.
    """
    metadata = checkpointer.metadata(description.arrays).item_metadata
    if metadata is None:
        raise ValueError("the list of its arrays is damaged")
    return metadata.tree


@contextlib.contextmanager
def naming_the_one_before(path: pathlib.Path, flag: str) -> Iterator[None]:
    """Say in the error of a checkpoint that cannot be read which one is before it.

    Args:
        path: of the checkpoint that the block reads.
        flag: that selects it.

    Raises:
        UserError: that of the block.
    """
    try:
        yield
    except Unreadable as error:
        older = [step for step in steps_in(path.parent) if step < int(path.name)]
        if not older:
            raise
        raise UserError(f"{error}; the one before is --{flag}={path.parent / str(max(older))}") from error


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
        checkpoint: a step of `workdir`, or a path to one checkpoint, to a `checkpoints` folder or to a
            workdir; None is the newest of `workdir`.
        flag: where the user gave it, for the error.

    Raises:
        UserError: there is none.
    """
    path = expanded(checkpoint, flag) if checkpoint else workdir
    if path.name.isdigit() and str(path) == checkpoint and path != workdir:
        path = workdir / "checkpoints" / path
    given = f"{flag}={checkpoint}" if checkpoint else f"--workdir={workdir}"
    if path.name.isdigit() and path.parent.name == "checkpoints":
        if path.is_dir():
            return path.absolute()
        if steps := steps_in(path.parent):
            there = ", ".join(map(str, sorted(steps)))
            raise UserError(f"{given}: there is no checkpoint of step {path.name}; there are {there}")
        path = path.parent
    folder = path if path.name == "checkpoints" else path / "checkpoints"
    steps = steps_in(folder)
    if not steps:
        where = "" if folder.parent in (workdir, path) else f" in {folder.absolute()}"
        raise UserError(
            f"{given}: no checkpoint{where}; give a folder <workdir>/checkpoints/<step>, or train first"
        )
    return (folder / str(max(steps))).absolute()
