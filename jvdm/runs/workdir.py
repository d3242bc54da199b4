"""The folder of one run: where everything lies, and whether it can be written."""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import pathlib
import socket
import uuid
from collections.abc import Iterator
from typing import Any

from jvdm import config as config_lib
from jvdm.core import processes
from jvdm.core.errors import UserError
from jvdm.core.files import write_atomically
from jvdm.core.registry import Config

log = logging.getLogger("jvdm")


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The layout of a workdir.

    Attributes:
        path: its absolute path.
    """

    path: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        """The resolved config the run was started with."""
        return self.path / "config.json"

    @property
    def data(self) -> pathlib.Path:
        """What the run was trained on: name, version, SHA-256, and the images' shape and levels."""
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
    def notes(self) -> pathlib.Path:
        """What each checkpoint's step leaves undone."""
        return self.path / "notes"

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
        """Pictures."""
        return self.path / "plots"

    def prepare(self) -> None:
        """Make the folder, and make sure that it can be written.

        Raises:
            UserError: it cannot.
        """
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
        """Keep other trainings out of the workdir, until the block or the process ends.

        Raises:
            UserError: there is one.
        """
        if not processes.is_main():
            yield
            return
        path = self.path / ".training"
        try:
            opened = open(path, "a+")  # noqa: SIM115, closed below
        except OSError as error:
            raise UserError(f"{path} cannot be opened ({error.strerror}); give another --workdir") from error
        with opened as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise UserError(
                    f"--workdir={self.path}: {owner} trains there already; stop it, or give another"
                ) from error
            except OSError as error:
                log.warning(
                    "WARNING: %s cannot be locked (%s): take care that nothing else trains there",
                    path,
                    error.strerror,
                )
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    def save_config(self, config: Config) -> None:
        """Write the resolved config, unless it is there and equal."""
        if not processes.is_main():
            return
        text = config_lib.to_json(config)
        if not (self.config.is_file() and self.config.read_text() == text):
            write_atomically(self.config, lambda file: file.write(text.encode()))

    def save_data(self, record: dict[str, Any]) -> None:
        """Write `data`."""
        if processes.is_main():
            write_atomically(self.data, lambda file: file.write((json.dumps(record) + "\n").encode()))
