"""Atomic writes of files, with failures reported to the user in one line."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

from jvdm.core.errors import UserError


def expanded(path: str | os.PathLike[str], what: str) -> pathlib.Path:
    """A path with `~` replaced by a home directory.

    Args:
        path: as the user gave it.
        what: where it was given, for the error: "--workdir".

    Raises:
        UserError: there is no such home directory.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{what}={path}: there is no home directory for ~; give the whole path") from error


@contextlib.contextmanager
def user_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an `OSError` raised inside the block into a `UserError` that names `path` and the cause.

    Args:
        path: the file being written.

    Raises:
        UserError: the disk is full, the directory is not writable, or similar.
    """
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"cannot write {path}: {error.filename} is not a directory") from error
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free space there, or give another --workdir"
        ) from error


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Write a file by way of a temporary one beside it, so that no reader sees a partial file.

    Args:
        path: the file; missing parent directories are created.
        write: receives the open temporary file. If it raises, `path` stays as it was.

    Raises:
        UserError: the file cannot be written.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with user_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray] | None:
    """The arrays of an .npz by name; None if it is damaged."""
    try:
        # numpy does not close a damaged file that it has opened itself.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    # Damaged bytes make zipfile, zlib and numpy raise a dozen kinds of errors, MemoryError among them where a
    # header claims a huge array. To the caller they are all one: these arrays must be computed again.
    except Exception:
        return None


def write_arrays(path: str | os.PathLike[str], *arrays: np.ndarray, **named: np.ndarray) -> None:
    """Write an .npz of unnamed arrays (`arr_0` and so on) and named ones.

    Raises:
        UserError: the file cannot be written.
    """

    def write(file: BinaryIO) -> None:
        np.savez(file, *arrays, allow_pickle=False, **named)

    write_atomically(path, write)
