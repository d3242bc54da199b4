"""What lies in a workdir, read for people: what is damaged becomes a note, and the rest is shown."""

import dataclasses
import io
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from jvdm import config as config_lib
from jvdm.core.errors import UserError
from jvdm.reporting import record_tables
from jvdm.reporting.markup import Picture
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
        name: its folder's name.
        config: as it was saved; None where it cannot be read.
        metrics: the lines of `metrics.jsonl`, those that can be read; nan and inf are floats.
        records: of evaluations and scores, by their path in the workdir.
        grids: samples during training, by step.
        samples: other pictures of samples.
        plots: other pictures, but the curves of training, which the report draws itself.
        checkpoints: the saved steps.
        files: (path in the workdir, bytes) of every file outside `checkpoints/`.
        notes: what is missing or damaged, in words.
    """

    path: pathlib.Path
    name: str
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
        """How many steps the config asks for."""
        training = (self.config or {}).get("training")
        value = training.get("num_steps") if isinstance(training, dict) else None
        return value if isinstance(value, int) else None

    @property
    def step(self) -> int | None:
        """The last step that is known of."""
        steps = [each["step"] for each in self.metrics] + self.checkpoints
        return max(steps, default=None)


def read_run(path: pathlib.Path, *, few: bool = False) -> Run:
    """Read a workdir.

    Args:
        path: its absolute path.
        few: of the samples during training, the last ones only.

    Raises:
        UserError: it is no folder, or no run's.
    """
    if not path.is_dir():
        raise UserError(f"--workdir={path}: " + ("not a folder" if path.exists() else "no such folder"))
    workdir, notes = Workdir(path), []
    files = sorted(_files(path, notes))
    names = [name for name, _ in files]
    config = None
    if not workdir.config.exists():
        notes.append("config.json: there is none, so the config is not shown")
    else:
        try:
            config = config_lib.read_json(workdir.config)
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
        notes.append(f"{name}: this pass was stopped before its end; the same command continues it")
    return Run(
        path=path,
        name=path.name or str(path),
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
    """Hidden files, those of checkpoints and the report itself are left out."""
    for folder, folders, names in os.walk(path, onerror=lambda error: notes.append(f"not readable: {error}")):
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
    """Every line that can be read, wherever the others are."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        notes.append("metrics.jsonl: there is none, so there are no curves")
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
        notes.append(f"metrics.jsonl: line {len(lines)}, the last, is incomplete and left out")
    elif damaged:
        shown = ", ".join(map(str, damaged[:5])) + ", …" * (len(damaged) > 5)
        notes.append(f"metrics.jsonl: {len(damaged)} of {len(lines)} lines are damaged and left out: {shown}")
    return metrics


def _record(path: pathlib.Path, name: str, notes: list[str]) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text())
        record_tables.check(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        notes.append(f"{name}: damaged or no record of an evaluation, and left out ({_reason(error, path)})")
        return None
    return record


def _reason(error: Exception, path: pathlib.Path) -> str:
    """The message without the path, which the note begins with."""
    if isinstance(error, KeyError):
        return f"no field {error}"
    return str(error).replace(f"{path}: ", "").replace("\n", " ")


def _some(steps: list[int], few: bool, notes: list[str]) -> list[int]:
    """The steps whose grids are shown: the first, the last, and evenly between."""
    limit = 1 if few else MAX_PICTURES
    if len(steps) <= limit:
        return steps
    if few:
        return steps[-1:]
    notes.append(f"samples/step_*.png: {limit} of {len(steps)} grids are shown")
    return [steps[round(i * (len(steps) - 1) / (limit - 1))] for i in range(limit)]


def _picture(path: pathlib.Path, name: str, notes: list[str]) -> Picture | None:
    from PIL import Image

    try:
        data = (path / name).read_bytes()
        if len(data) > MAX_PICTURE_BYTES:
            megabytes = f"{len(data) / 1e6:.1f} MB, more than {MAX_PICTURE_BYTES / 1e6:.0f}"
            notes.append(f"{name}: {megabytes}, so it is not part of the page")
            return None
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            return Picture(name=name, data=data, width=image.width, height=image.height)
    # Pillow has no common exception of a damaged file.
    except Exception as error:
        notes.append(f"{name}: damaged or no PNG, and left out ({type(error).__name__})")
        return None
