"""Reads a workdir for the report: whatever is damaged becomes a note, and the rest is shown."""

import dataclasses
import io
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from jvdm.core import formats
from jvdm.core.errors import UserError
from jvdm.reporting import record_tables
from jvdm.reporting.parts import Picture
from jvdm.runs import saved
from jvdm.runs.workdir import Workdir

MAX_PICTURES = 12
MAX_PICTURE_BYTES = 4_000_000
MAX_FILES = 200
REPORT = "report.html"
_STEP = re.compile(r"samples/step_(\d+)\.png")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One workdir.

    Attributes:
        path: its absolute path.
        config: the saved config; None if it cannot be read.
        metrics: the readable lines of `metrics.jsonl`; nan and inf are floats.
        records: of evaluations and scores, by their path in the workdir.
        grids: samples during training, by step.
        samples: other pictures of samples.
        plots: other pictures except the training curves, which the report draws itself.
        checkpoints: the saved steps.
        files: (path in the workdir, bytes) of every file outside `checkpoints/`.
        notes: what is missing or damaged, one sentence each.
    """

    path: pathlib.Path
    config: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    records: dict[str, dict[str, Any]]
    grids: dict[int, Picture]
    samples: list[Picture]
    plots: list[Picture]
    checkpoints: list[int]
    files: list[tuple[str, int]]
    notes: list[str]

    @property
    def num_steps(self) -> int | None:
        """The number of training steps in the config; None if unknown."""
        training = (self.config or {}).get("training")
        value = training.get("num_steps") if isinstance(training, dict) else None
        return value if isinstance(value, int) else None

    @property
    def step(self) -> int | None:
        """The last recorded step; None if there is none."""
        steps = [each["step"] for each in self.metrics] + self.checkpoints
        return max(steps, default=None)


def read_run(path: pathlib.Path, *, few: bool = False) -> Run:
    """Read a workdir.

    Args:
        path: its absolute path.
        few: show only the last grid of samples drawn during training.

    Raises:
        UserError: the path is not a folder, or the folder holds no run.
    """
    if not path.is_dir():
        raise UserError(f"--workdir={path}: " + ("not a folder" if path.exists() else "no such folder"))
    workdir, notes = Workdir(path), []
    files = sorted(_files(path, notes))
    names = [name for name, _ in files]
    config = None
    if not workdir.config.exists():
        notes.append("config.json: missing, so the config is not shown")
    else:
        try:
            config = saved.read_config(workdir.config)
        except (UserError, RecursionError) as error:
            notes.append(
                f"config.json: damaged, so the config is not shown ({_reason(error, workdir.config)})"
            )
    metrics = _metrics(workdir.metrics, notes)
    records = {
        name: record
        for name in names
        if re.fullmatch(r"(eval|scores)/[^/]+\.json", name)
        and (record := _record(path / name, name, notes)) is not None
    }
    checkpoints = sorted(
        int(each.name) for each in path.glob("checkpoints/*") if each.is_dir() and each.name.isdecimal()
    )
    pngs = [name for name in names if re.fullmatch(r"(samples|plots)/[^/]+\.png", name)]
    if config is None and not (metrics or records or checkpoints or pngs):
        raise UserError(
            f"--workdir={path} holds no run: no config, metrics, checkpoints, evaluations or pictures that "
            "can be read"
        )
    steps = {int(match[1]): name for name in pngs if (match := _STEP.fullmatch(name))}
    grids = {
        step: picture
        for step in _some(sorted(steps), few, notes)
        if (picture := _picture(path, steps[step], notes))
    }
    others = [name for name in pngs if name not in steps.values() and name != "plots/training.png"]
    pictures = [picture for name in others if (picture := _picture(path, name, notes))]
    for folder in sorted(path.glob("eval/*.partial")) + sorted(path.glob("scores/*.partial")):
        name = f"{folder.parent.name}/{folder.stem}"
        notes.append(
            f"{name}: this evaluation was stopped before its end; run the same command again to continue it"
        )
    return Run(
        path=path,
        config=config,
        metrics=metrics,
        records=records,
        grids=grids,
        samples=[each for each in pictures if each.name.startswith("samples/")],
        plots=[each for each in pictures if each.name.startswith("plots/")],
        checkpoints=checkpoints,
        files=files,
        notes=notes,
    )


def _files(path: pathlib.Path, notes: list[str]) -> Iterator[tuple[str, int]]:
    """List the files, except hidden ones, those of checkpoints and the report itself."""
    for folder, folders, names in os.walk(
        path, onerror=lambda error: notes.append(f"cannot be read: {error}")
    ):
        inside = pathlib.Path(folder).relative_to(path)
        top = inside == pathlib.Path()
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not (top and f == "checkpoints"))
        for name in names:
            if not name.startswith(".") and not (top and name == REPORT):
                try:
                    yield (inside / name).as_posix(), (path / inside / name).stat().st_size
                except OSError as error:
                    notes.append(f"{(inside / name).as_posix()}: {error.strerror}")


def _metrics(path: pathlib.Path, notes: list[str]) -> list[dict[str, Any]]:
    """Read every intact line, wherever the damaged ones are."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        notes.append("metrics.jsonl: missing, so there are no curves")
        return []
    except OSError as error:
        notes.append(f"metrics.jsonl: {error.strerror}, so there are no curves")
        return []
    while lines and not lines[-1].strip():
        lines.pop()
    metrics, damaged = [], []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            step = record["step"]
            if not isinstance(step, int) or isinstance(step, bool):
                raise TypeError("a step is an integer")
            float(step)  # within range
            # "nan", "inf" and "-inf" are written as strings.
            values = {name: float(value) for name, value in record.items() if name != "step"}
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            damaged.append(number)
        else:
            metrics.append({"step": step, **values})
    if damaged == [len(lines)]:
        notes.append(f"metrics.jsonl: line {len(lines)}, the last, is incomplete and was left out")
    elif damaged:
        shown = ", ".join(map(str, damaged[:5])) + ", …" * (len(damaged) > 5)
        notes.append(
            f"metrics.jsonl: {len(damaged)} of {len(lines)} lines are damaged and were left out: {shown}"
        )
    return metrics


def _record(path: pathlib.Path, name: str, notes: list[str]) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text())
        formats.check(record, formats.RECORD, path)
        record_tables.check(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        notes.append(
            f"{name}: damaged, or not a record of an evaluation, and left out ({_reason(error, path)})"
        )
        return None
    return record


def _reason(error: Exception, path: pathlib.Path) -> str:
    """The error's message without the path, because the note begins with it."""
    if isinstance(error, KeyError):
        return f"field {error} is missing"
    return str(error).replace(f"{path}: ", "").replace("\n", " ")


def _some(steps: list[int], few: bool, notes: list[str]) -> list[int]:
    """The steps whose grids are shown: the first, the last, and evenly spaced ones between."""
    limit = 1 if few else MAX_PICTURES
    if len(steps) <= limit:
        return steps
    if few:
        return steps[-1:]
    notes.append(f"samples/step_*.png: only {limit} of {len(steps)} grids are shown")
    return [steps[round(i * (len(steps) - 1) / (limit - 1))] for i in range(limit)]


def _picture(path: pathlib.Path, name: str, notes: list[str]) -> Picture | None:
    from PIL import Image

    try:
        data = (path / name).read_bytes()
        if len(data) > MAX_PICTURE_BYTES:
            megabytes = f"{len(data) / 1e6:.1f} MB, more than {MAX_PICTURE_BYTES / 1e6:.0f}"
            notes.append(f"{name}: {megabytes}, so it is not shown")
            return None
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            return Picture(name=name, data=data, width=image.width, height=image.height)
    # Pillow has no common exception for damaged files.
    except Exception as error:
        notes.append(f"{name}: damaged, or not a PNG, and left out ({type(error).__name__})")
        return None
