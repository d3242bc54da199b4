"""Files that appear whole or not at all, and whose failures are one line for the user."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

from jvdm.core.errors import UserError


@contextlib.contextmanager
def user_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an `OSError` raised inside the block into a `UserError` that names `path` and the cause.

    Args:
      path: the file being written.

    Raises:
      UserError: for a full disk, a directory that is not writable and the like.
    """
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"cannot write {path}: {error.filename} is not a directory") from error
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error} (free space there or choose another directory)"
        ) from error


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Writes a file through a temporary one beside it, so that a reader never sees half of it.

    Args:
      path: the file; missing parent directories are created.
      write: is given the open temporary file. An exception it raises leaves `path` as it was.

    Raises:
      UserError: if the file cannot be written.
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
    """The arrays of an .npz by name; None where it is damaged."""
    try:
        # numpy does not close a damaged file that it has opened itself.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    # zipfile, zlib and numpy each have errors of their own for a damaged archive, some by accident.
    except Exception:
        return None


def write_arrays(path: str | os.PathLike[str], *arrays: np.ndarray, **named: np.ndarray) -> None:
    """Writes an .npz of unnamed arrays, `arr_0` and so on, and of others by name.

    Raises:
      UserError: if the file cannot be written.
    """

    def write(file: BinaryIO) -> None:
        np.savez(file, *arrays, allow_pickle=False, **named)

    write_atomically(path, write)
