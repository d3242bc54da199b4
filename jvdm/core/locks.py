"""A lock that keeps other processes out of a block, released when its process ends for any reason."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator

log = logging.getLogger("jvdm")


class Busy(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def exclusive(path: pathlib.Path, *, wait: bool, purpose: str) -> Iterator[None]:
    """Hold a lock until the block or the process ends. A file system without locks is reported in the log.

    Args:
        path: the lock's file, which stays; its holder may write into it.
        wait: for another holder to finish.
        purpose: what others must not do meanwhile, for the warning ("trains there").

    Raises:
        Busy: another process holds the lock, and this one does not wait.
        OSError: the file cannot be opened.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("a").close()
    # The substitute for a lock, a marker file, would outlive a process that is killed.
    lock = FileLock(path, timeout=-1 if wait else 0, fallback_to_soft=False)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(lock)
        except Timeout as error:
            raise Busy(str(path)) from error
        except OSError as error:
            log.warning(
                "WARNING: %s cannot be locked (%s): make sure that nothing else %s",
                path,
                error.strerror,
                purpose,
            )
        yield
