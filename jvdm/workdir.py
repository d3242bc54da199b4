"""The folder of one run: where everything lies, and whether it can be written."""

import dataclasses
import pathlib
import uuid

from jvdm import config as config_lib
from jvdm.errors import UserError
from jvdm.registry import Config
from jvdm.reporting.files import write_atomically


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

    def save_config(self, config: Config) -> None:
        """Write the resolved config, unless it is there and equal."""
        text = config_lib.to_json(config)
        if not (self.config.is_file() and self.config.read_text() == text):
            write_atomically(self.config, lambda file: file.write(text.encode()))
