"""A run, or several side by side, as one HTML page that needs nothing else: no network, no other file.

Everything that comes from files is escaped (`markup`), the page's only script is named by its hash in a
policy that forbids any other and any request, and the bytes depend on the workdirs alone.
"""

import base64
import collections
import datetime
import hashlib
import importlib.resources
import pathlib
import re
from collections.abc import Callable, Sequence

import jvdm
from jvdm.core.errors import UserError
from jvdm.core.files import write_atomically
from jvdm.core.progress import duration
from jvdm.reporting import charts, config_tables, markup, record_tables
from jvdm.reporting.markup import Column, Html, Picture, element, join
from jvdm.reporting.record_tables import Entry
from jvdm.reporting.runs import MAX_FILES, REPORT, Run, read_run

NUM_COLOURS = 8
_PLOTS = {
    "plots/schedule.png": "noise schedule γ(t) and its derivative",
    "plots/pixel_schedules.png": "noise schedule γ(t) of every pixel, for the latents of some test images",
    "plots/density.png": "density in the plane",
    "samples/trajectories.png": "trajectories of samples in the plane",
}


def write_report(path: pathlib.Path, others: Sequence[pathlib.Path] = ()) -> tuple[pathlib.Path, list[str]]:
    """Write `report.html` into a workdir.

    Args:
        path: the workdir, absolute.
        others: workdirs that it is compared with.

    Returns:
        The page, and its notes on what is missing or damaged.

    Raises:
        UserError: one of the workdirs is none, or the page cannot be written.
    """
    paths = [path, *others]
    for i, other in enumerate(paths):
        if other.resolve() in [each.resolve() for each in paths[:i]]:
            raise UserError(f"--compare={other}: this workdir is given twice")
    runs = _named([read_run(each, few=bool(others)) for each in paths])
    target = path / REPORT
    content = page(runs).encode("utf-8")
    write_atomically(target, lambda file: file.write(content))
    return target, [f"{run.path}: {note}" for run in runs.values() for note in run.notes]


def page(runs: dict[str, Run]) -> str:
    """The page.

    Args:
        runs: by what they are called.
    """
    several = len(runs) > 1
    sections: dict[str, Callable[[dict[str, Run]], Html]] = {
        "Evaluations": _evaluations,
        "Curves": _curves,
        "Samples": _samples,
        "Schedule and loss": _plots,
        "Config": _differences if several else _config,
        "Environment": _environment,
        "Files": _files,
    }
    style, script = (
        importlib.resources.files("jvdm.reporting").joinpath(f"report.{kind}").read_text()
        for kind in ("css", "js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    name = ", ".join(runs)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("title", f"{name} – jvdm report"),
        element("link", rel="icon", href="data:,"),
        markup.raw("style", style),
    )
    links = [element("li", element("a", title, href=f"#{_anchor(title)}")) for title in sections]
    body = element(
        "body",
        element("header", element("p", "jvdm report", class_="kind"), element("h1", name), _status(runs)),
        _notes(runs),
        element("nav", element("ul", *links), aria_label="Sections"),
        element(
            "main",
            *(
                element("section", element("h2", title), show(runs), id=_anchor(title))
                for title, show in sections.items()
            ),
        ),
        element("footer", element("p", f"Made by jvdm {jvdm.__version__} from what lies in the workdir.")),
        markup.raw("script", script),
    )
    return "<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n"


def _named(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by their folders' names, and by as much of their paths as tells them apart."""
    for depth in range(1, max(len(run.path.parts) for run in runs) + 1):
        names = ["/".join(run.path.parts[-depth:]) for run in runs]
        if len(set(names)) == len(names):
            return dict(zip(names, runs, strict=True))
    return {str(run.path): run for run in runs}


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _status(runs: dict[str, Run]) -> Html:
    """How far each run is, and the newest evaluations of a single one."""
    lines = []
    for name, run in runs.items():
        parts = (
            [f"step {run.step:,}" + (f" of {run.num_steps:,}" if run.num_steps else "")]
            if run.step is not None
            else []
        )
        if times := _times(run):
            parts.append(f"{duration(times[1] - times[0])} from the first to the last line of metrics")
        if not any(file.startswith("eval/") for file in run.records):
            parts.append("no evaluation yet")
        status = " · ".join(parts)
        lines.append(element("p", f"{name}: {status}" if len(runs) > 1 else status))
    if len(runs) > 1:
        return join(lines)
    records = [r for run in runs.values() for name, r in run.records.items() if name.startswith("eval/")]
    newest = max((record["provenance"]["step"] for record in records), default=0)
    cards = [record_tables.card(record) for record in records if record["provenance"]["step"] == newest]
    return join([*lines, element("ul", *cards, class_="cards") if cards else ""])


def _notes(runs: dict[str, Run]) -> Html:
    notes = [
        element("li", f"{name}: {note}" if len(runs) > 1 else note)
        for name, run in runs.items()
        for note in run.notes
    ]
    if not notes:
        return Html("")
    return element("aside", element("h2", "Missing or damaged"), element("ul", *notes), class_="notes")


def _evaluations(runs: dict[str, Run]) -> Html:
    entries = [
        Entry(run=name, name=file, record=record)
        for name, run in runs.items()
        for file, record in run.records.items()
    ]
    if not entries:
        return _empty("No evaluation yet: --mode=eval makes them.")
    entries = record_tables.labelled(entries, with_run=len(runs) > 1)
    fold = element(
        "summary", "Settings and provenance ", element("span", "every field of every record", class_="units")
    )
    return join(
        [
            record_tables.results(entries),
            record_tables.terms(entries),
            element("details", fold, record_tables.everything(entries)),
        ]
    )


def _curves(runs: dict[str, Run]) -> Html:
    """A panel for each quantity; those of runs in other units are apart."""
    by_run = {name: charts.lines(run.metrics) for name, run in runs.items()}
    panels: dict[tuple[str, str], list[charts.Line]] = {}
    for i, (name, found) in enumerate(by_run.items()):
        for term, splits in found.items():
            panel = panels.setdefault((term, charts.units(term, found)), [])
            for split, line in splits.items():
                panel.append(charts.of_run(line, name, i % NUM_COLOURS, split) if len(runs) > 1 else line)
    if not panels:
        return _empty("Nothing recorded yet.")
    if len(runs) == 1:
        splits = {line.class_: line.label for lines in panels.values() for line in lines}
        key = charts.legend(sorted(splits.items(), key=lambda item: item[1] != "train"))
    else:
        colours = [(f"run-{i % NUM_COLOURS}", name) for i, name in enumerate(runs)]
        dashes = element("p", "Solid lines are of test data, dashed ones of training.", class_="small")
        key = join([charts.legend(colours), dashes])
    drawn = [
        charts.chart(term, lines, units=units, wide=term in charts.TOTALS)
        for (term, units), lines in panels.items()
    ]
    text = (
        "Against the training step. The vertical axes are those of the last nine tenths of a run; dense "
        "series are drawn lightly, with their running mean on top. Values “test” are of the averaged weights."
    )
    explained = element("p", text, class_="small")
    return join([key, element("div", *drawn, class_="charts"), explained, _last_values(by_run)])


def _last_values(by_run: dict[str, dict[str, dict[str, charts.Line]]]) -> Html:
    """The curves' ends as numbers."""
    rows = []
    for name, terms in by_run.items():
        if len(by_run) > 1:
            rows.append([name])
        for term, splits in terms.items():
            for split, line in splits.items():
                if len(line.steps):
                    least = int(line.values.argmin())
                    cells = [f"{line.steps[-1]:,.0f}", f"{line.values[-1]:.5g}", f"{line.values[least]:.5g}"]
                    rows.append([f"{charts.title(term)}, {split}", *cells, f"{line.steps[least]:,.0f}"])
    titles = ("last step", "last value", "lowest value", "at step")
    columns = [Column(title="curve"), *(Column(title=title, number=True) for title in titles)]
    return element(
        "details",
        element("summary", "The curves as numbers"),
        markup.table("Ends of the curves", columns, rows),
    )


def _samples(runs: dict[str, Run]) -> Html:
    shown = []
    for name, run in runs.items():
        start = f"{name}: " if len(runs) > 1 else ""
        for step, picture in run.grids.items():
            alt = f"{start}grid of samples at step {step}"
            shown.append(markup.figure(picture, f"{start}step {step:,}", alt=alt))
        for picture in run.samples:
            caption = start + _caption(picture, run)
            shown.append(markup.figure(picture, caption, alt=caption))
    return element("div", *shown, class_="pictures") if shown else _empty("No samples.")


def _plots(runs: dict[str, Run]) -> Html:
    shown = []
    for name, run in runs.items():
        for picture in run.plots:
            caption = (f"{name}: " if len(runs) > 1 else "") + _caption(picture, run)
            shown.append(markup.figure(picture, caption, alt=caption))
    if not shown:
        return _empty(
            "No plots yet: training makes that of the schedule at its end, --mode=eval that of the loss."
        )
    return element("div", *shown, class_="pictures large")


def _caption(picture: Picture, run: Run) -> str:
    if picture.name in _PLOTS:
        return _PLOTS[picture.name]
    if match := re.fullmatch(r"plots/loss_against_gamma_(.+)\.png", picture.name):
        record = run.records.get(f"eval/{match[1]}.json")
        if record is None:
            return f"diffusion loss against γ, {match[1]}"
        step = record["provenance"]["step"]
        return f"diffusion loss against γ, {record_tables.description(record)}, step {step:,}"
    if match := re.fullmatch(r"samples/samples_(\d+)x(.+)\.png", picture.name):
        return f"{int(match[1]):,} samples of --mode=sample, {match[2].replace('x', '×')}"
    return picture.name


def _config(runs: dict[str, Run]) -> Html:
    (run,) = runs.values()
    if run.config is None:
        return _empty("The config cannot be read.")
    return join(
        [config_tables.changes(run.config), element("h3", "All fields"), config_tables.everything(run.config)]
    )


def _differences(runs: dict[str, Run]) -> Html:
    return config_tables.differences({name: run.config for name, run in runs.items()})


def _environment(runs: dict[str, Run]) -> Html:
    """Where the evaluations ran."""
    found: dict[str, dict[str, set[str]]] = collections.defaultdict(lambda: collections.defaultdict(set))
    for name, run in runs.items():
        for record in run.records.values():
            for key, value in record_tables.environment(record).items():
                found[key][name].add(value)
    if not found:
        return _empty("Evaluations record it, and there is none yet.")
    rows = [[key, *(", ".join(sorted(each[name])) or None for name in runs)] for key, each in found.items()]
    columns = [Column(title="of the evaluations"), *(Column(title=name) for name in runs)]
    return markup.table("Devices and versions", columns, rows)


def _files(runs: dict[str, Run]) -> Html:
    parts = []
    for name, run in runs.items():
        steps = ", ".join(f"{step:,}" for step in run.checkpoints) or "none"
        parts += [
            element("p", element("code", str(run.path))),
            element("p", f"Checkpoints of steps: {steps}. {_when(run)}"),
        ]
        rows: list[list[object]] = [
            [element("code", file), f"{size:,}"] for file, size in run.files[:MAX_FILES]
        ]
        if len(run.files) > MAX_FILES:
            rows.append([f"and {len(run.files) - MAX_FILES:,} more", None])
        columns = [Column(title="file"), Column(title="bytes", number=True)]
        count = element("span", f"{len(run.files):,}", class_="units")
        summary = element("summary", "Files ", count)
        parts.append(element("details", summary, markup.table(f"Files of {name}", columns, rows)))
    return join(parts)


def _times(run: Run) -> tuple[float, float] | None:
    """Of the first and the last line of metrics, unix seconds."""
    times = [line["time"] for line in run.metrics if 0.0 <= line.get("time", -1.0) < 1e11]
    return (times[0], times[-1]) if times and times[0] <= times[-1] else None


def _when(run: Run) -> str:
    times = _times(run)
    if times is None:
        return ""
    first, last = (datetime.datetime.fromtimestamp(time, datetime.UTC) for time in times)
    return f"Metrics from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC."


def _empty(text: str) -> Html:
    return element("p", text, class_="empty")
