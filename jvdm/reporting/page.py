"""What the report shows, computed for the template."""

import collections
import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jvdm.core.progress import duration
from jvdm.reporting import charts, config_tables, curves, record_tables
from jvdm.reporting.parts import Column, Figure, Picture, Table
from jvdm.reporting.record_tables import Entry
from jvdm.reporting.runs import MAX_FILES, Run

NUM_COLOURS = 8
_PLOTS = {
    "plots/schedule": "noise schedule γ(t) and its derivative",
    "plots/pixel_schedules": "noise schedule γ(t) of every pixel, for the latents of some test images",
    "plots/density": "density in the plane",
    "samples/trajectories": "trajectories of samples in the plane",
}


def content(runs: Mapping[str, Run]) -> dict[str, Any]:
    """What the template draws of these runs; it writes a line in place of what is None or empty."""
    several = len(runs) > 1
    entries = entries_of(runs)
    by_run = {name: curves.read(run.metrics) for name, run in runs.items()}
    lines = _lines(by_run)
    configs = {name: run.config for name, run in runs.items() if run.config is not None}
    single = None if several else next(iter(configs.values()), None)
    start = {name: f"{name}: " * several for name in runs}
    return {
        "name": ", ".join(runs),
        "is_comparison": several,
        "status": [start[name] + _status(run) for name, run in runs.items()],
        "notes": [start[name] + note for name, run in runs.items() for note in run.notes],
        "cards": [] if several else _cards(entries),
        "results": record_tables.results(entries) if entries else None,
        "terms": record_tables.terms(entries),
        "records": record_tables.everything(entries),
        "legend": _legend(list(runs), lines),
        "charts": [
            charts.chart(term, drawn, units=units, wide=term in curves.TOTALS)
            for (term, units), drawn in lines.items()
        ],
        "ends": _ends(by_run),
        "samples": [figure for name, run in runs.items() for figure in _samples(run, start[name])],
        "plots": [_figure(each, run, start[name]) for name, run in runs.items() for each in run.plots],
        "num_configs": len(configs),
        "changes": None if single is None else config_tables.changes(single),
        "fields": [] if single is None else config_tables.sections(single),
        "differences": config_tables.differences(configs) if len(configs) > 1 else None,
        "environment": _environment(runs),
        "files": [_files(name, run) for name, run in runs.items()],
    }


def entries_of(runs: Mapping[str, Run]) -> list[Entry]:
    """The records of all runs, with labels that tell them apart."""
    entries = [Entry(run=run, name=name, record=it) for run in runs for name, it in runs[run].records.items()]
    return record_tables.labelled(entries, with_run=len(runs) > 1)


def named(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by their folders' names, and by as much of their paths as tells them apart."""
    for depth in range(1, max(len(run.path.parts) for run in runs) + 1):
        names = ["/".join(run.path.parts[-depth:]) for run in runs]
        if len(set(names)) == len(names):
            return dict(zip(names, runs, strict=True))
    return {str(run.path): run for run in runs}


def _status(run: Run) -> str:
    """How far a run is."""
    parts = []
    if run.step is not None:
        parts.append(f"step {run.step:,}" + (f" of {run.num_steps:,}" if run.num_steps else ""))
    if times := _times(run):
        parts.append(f"{duration(times[1] - times[0])} from the first to the last line of metrics")
    if not any(file.startswith("eval/") for file in run.records):
        parts.append("no evaluation yet")
    return " · ".join(parts)


def _cards(entries: Sequence[Entry]) -> list[record_tables.Card]:
    """The evaluations of the newest step."""
    records = [entry.record for entry in entries if entry.name.startswith("eval/")]
    newest = max((record["provenance"]["step"] for record in records), default=0)
    return [record_tables.card(record) for record in records if record["provenance"]["step"] == newest]


_Terms = Mapping[str, Mapping[str, curves.Series]]  # by term, by split


def _lines(by_run: Mapping[str, _Terms]) -> dict[tuple[str, str], list[charts.Line]]:
    """The lines of every chart, by the quantity and its units: runs in other units get their own charts."""
    found: dict[tuple[str, str], list[charts.Line]] = {}
    for i, (name, terms) in enumerate(by_run.items()):
        for term, splits in terms.items():
            panel = found.setdefault((term, curves.units(term, terms)), [])
            for split, series in splits.items():
                if len(by_run) > 1:
                    class_ = f"run-{i % NUM_COLOURS}" + " dashed" * (split == "train")
                    panel.append(charts.Line(f"{name}, {split}", class_, series))
                else:
                    class_ = split if split in ("train", "test") else "other"
                    panel.append(charts.Line(split, class_, series))
    return found


def _legend(
    names: Sequence[str], lines: Mapping[tuple[str, str], Sequence[charts.Line]]
) -> list[tuple[str, str]]:
    """A colour for each run, or for each split of a single run."""
    if len(names) > 1:
        return [(f"run-{i % NUM_COLOURS}", name) for i, name in enumerate(names)]
    splits = {line.class_: line.label for drawn in lines.values() for line in drawn}
    return sorted(splits.items(), key=lambda item: item[1] != "train")


def _ends(by_run: Mapping[str, _Terms]) -> Table:
    """The last and the lowest value of every curve."""
    groups: dict[str, list[list[str | None]]] = {}
    for name, terms in by_run.items():
        rows = groups.setdefault(name if len(by_run) > 1 else "", [])
        for term, splits in terms.items():
            for split, series in splits.items():
                if len(series.steps):
                    steps, values, least = series.steps, series.values, int(series.values.argmin())
                    last = [f"{steps[-1]:,.0f}", f"{values[-1]:.5g}"]
                    lowest = [f"{values[least]:.5g}", f"{steps[least]:,.0f}"]
                    rows.append([f"{curves.title(term)}, {split}", *last, *lowest])
    titles = ("last step", "last value", "lowest value", "at step")
    columns = [Column("curve"), *(Column(title, "number") for title in titles)]
    return Table(caption="Last and lowest values", columns=columns, groups=groups)


def _samples(run: Run, start: str) -> list[Figure]:
    """The grids of samples during training, and other samples."""
    grids = [
        Figure(picture, f"{start}step {step:,}", f"{start}grid of samples at step {step}")
        for step, picture in run.grids.items()
    ]
    return grids + [_figure(picture, run, start) for picture in run.samples]


def _figure(picture: Picture, run: Run, start: str) -> Figure:
    caption = start + _caption(picture, run)
    return Figure(picture, caption, caption)


def _caption(picture: Picture, run: Run) -> str:
    match = re.fullmatch(rf"({'|'.join(_PLOTS)})(?:_.*?step(\d+)_.*)?\.png", picture.name)
    if match:
        return _PLOTS[match[1]] + (f", step {int(match[2]):,}" if match[2] else "")
    if match := re.fullmatch(r"plots/loss_against_gamma_(.+)\.png", picture.name):
        record = run.records.get(f"eval/{match[1]}.json")
        if record is None:
            return f"diffusion loss against γ, {match[1]}"
        step = record["provenance"]["step"]
        return f"diffusion loss against γ, {record_tables.description(record)}, step {step:,}"
    if match := re.fullmatch(
        r"samples/samples_(\d+)x([\dx]+)(?:_step(\d+)_seed(\d+)_\w+)?\.png", picture.name
    ):
        of = f", step {int(match[3]):,}, seed {match[4]}" if match[3] else ""
        return f"{int(match[1]):,} samples of --mode=sample, {match[2].replace('x', '×')}{of}"
    return picture.name


def _environment(runs: Mapping[str, Run]) -> Table | None:
    """Where the evaluations ran; None if there are none."""
    found: dict[str, dict[str, set[str]]] = collections.defaultdict(lambda: collections.defaultdict(set))
    for name, run in runs.items():
        for record in run.records.values():
            for key, value in record_tables.environment(record).items():
                found[key][name].add(value)
    rows = [[key, *(", ".join(sorted(each[name])) or None for name in runs)] for key, each in found.items()]
    columns = [Column("environment"), *map(Column, runs)]
    return Table(caption="Devices and versions", columns=columns, groups={"": rows}) if rows else None


def _files(name: str, run: Run) -> dict[str, Any]:
    """The files of a run, and its checkpoints."""
    steps = ", ".join(f"{step:,}" for step in run.checkpoints) or "none"
    rows = [[file, f"{size:,}"] for file, size in run.files[:MAX_FILES]]
    more = len(run.files) - MAX_FILES
    groups = {"": rows} | ({f"and {more:,} more": []} if more > 0 else {})
    columns = [Column("file", "code"), Column("bytes", "number")]
    return {
        "path": run.path,
        "text": f"Checkpoints of steps: {steps}. {_when(run)}",
        "count": f"{len(run.files):,}",
        "table": Table(caption=f"Files of {name}", columns=columns, groups=groups),
    }


def _times(run: Run) -> tuple[float, float] | None:
    """The times of the first and the last line of metrics, unix seconds."""
    times = [line["time"] for line in run.metrics if 0.0 <= line.get("time", -1.0) < 1e11]
    return (times[0], times[-1]) if times and times[0] <= times[-1] else None


def _when(run: Run) -> str:
    times = _times(run)
    if times is None:
        return ""
    first, last = (datetime.datetime.fromtimestamp(time, datetime.UTC) for time in times)
    return f"Metrics from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC."
