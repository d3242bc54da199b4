"""The folder of one run: its layout, whether it can be written, and the lock that one training holds."""

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import uuid
from collections.abc import Iterator
from typing import Any

from jvdm.core import locks, processes
from jvdm.core.errors import UserError
from jvdm.core.files import write_atomically
from jvdm.core.registry import Config
from jvdm.runs import saved


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The layout of a workdir.

    Attributes:
        path: its absolute path.
    """

    path: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        """The resolved config that the run was started with."""
        return self.path / "config.json"

    @property
    def data(self) -> pathlib.Path:
        """The training data: name, version, SHA-256, and the images' shape and levels."""
        return self.path / "data.json"

    @property
    def metrics(self) -> pathlib.Path:
        """One JSON line per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> pathlib.Path:
        """One folder per saved step."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> pathlib.Path:
        """Grids and arrays of samples."""
        return self.path / "samples"

    @property
    def eval(self) -> pathlib.Path:
        """Records of evaluations."""
        return self.path / "eval"

    @property
    def scores(self) -> pathlib.Path:
        """Bits/dim of single images."""
        return self.path / "scores"

    @property
    def plots(self) -> pathlib.Path:
        """Curves and other pictures."""
        return self.path / "plots"

    def prepare(self) -> None:
        """Create the folder, and make sure that it and what is written in it later can be written.

        Raises:
            UserError: it cannot.
        """
        folders = (self.checkpoints, self.samples, self.eval, self.scores, self.plots)
        for path in (*folders, self.config, self.data, self.metrics):
            is_kind = path.is_dir() if path in folders else path.is_file()
            if path.exists() and not (is_kind and os.access(path, os.W_OK)):
                kind = "folder" if path in folders else "file"
                raise UserError(
                    f"{path} is not a {kind} that can be written; remove it, or give another --workdir"
                )
        probe = self.path / f".write-{uuid.uuid4().hex}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"--workdir={self.path} cannot be written ({error.strerror}); give another"
            ) from error

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other trainings out of the workdir until the block or the process ends.

        Raises:
            UserError: another one is at work there, or the lock's file cannot be opened.
        """
        if not processes.is_main():
            yield
            return
        path = self._lock
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locks.exclusive(path, wait=False, purpose="trains there"))
                path.write_text(_this_process())
            except locks.Busy as error:
                owner = path.read_text().strip() or "another process"
                raise UserError(
                    f"--workdir={self.path}: {owner} trains there already; stop it, or give another"
                ) from error
            except OSError as error:
                raise UserError(
                    f"{path} cannot be opened ({error.strerror}); give another --workdir"
                ) from error
            yield

    def discard_if_unused(self) -> None:
        """Remove the folder if there is nothing in it but the lock of this process."""
        with contextlib.suppress(OSError):
            if self._lock.is_file() and self._lock.read_text() == _this_process():
                if len(list(self.path.iterdir())) > 1:
                    return
                self._lock.unlink()
            self.path.rmdir()

    @property
    def _lock(self) -> pathlib.Path:
        return self.path / ".training"

    def save_config(self, config: Config) -> None:
        """Write the resolved config, unless the same text is there."""
        if not processes.is_main():
            return
        text = saved.config_text(config)
        if not (self.config.is_file() and self.config.read_text() == text):
            write_atomically(self.config, lambda file: file.write(text.encode()))
        if own := saved.own_components(config):
            text = json.dumps(own, indent=2) + "\n"
            write_atomically(self.path / saved.OWN_COMPONENTS, lambda file: file.write(text.encode()))

    def save_data(self, record: dict[str, Any]) -> None:
        """Write the description of the training data."""
        if processes.is_main():
            text = saved.data_text(record)
            write_atomically(self.data, lambda file: file.write(text.encode()))


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"
