"""A run, or several side by side, as one HTML page that loads nothing: no network, no other file.

`page` computes what is shown and `report.html` draws it, with every value escaped. The page's only script
is named by its hash in a policy that forbids any other script and any request. The bytes depend on the
workdirs alone.
"""

import base64
import hashlib
import importlib.resources
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jinja2
from markupsafe import Markup

import jvdm
from jvdm.core.errors import UserError
from jvdm.core.files import write_atomically
from jvdm.reporting import page, record_tables
from jvdm.reporting.runs import REPORT, Run, read_run


class Report(NamedTuple):
    """A report that was written.

    Attributes:
        path: the page.
        notes: what is missing or damaged.
        text: for the terminal: the table of evaluations, and where the run's outputs are.
    """

    path: pathlib.Path
    notes: list[str]
    text: str


def write_report(path: pathlib.Path, others: Sequence[pathlib.Path] = ()) -> Report:
    """Write `report.html` into a workdir.

    Args:
        path: the workdir, absolute.
        others: workdirs that it is compared with.

    Raises:
        UserError: a path is not a workdir, or the page cannot be written.
    """
    paths = [path, *others]
    for i, other in enumerate(paths):
        if other.resolve() in [each.resolve() for each in paths[:i]]:
            raise UserError(f"--compare={other}: this workdir is given twice")
    runs = page.named([read_run(each, few=bool(others)) for each in paths])
    entries = page.entries_of(runs)
    content = render(runs).encode("utf-8")
    target = path / REPORT
    write_atomically(target, lambda file: file.write(content))
    first = next(iter(runs.values()))
    outputs = [
        *(("checkpoint", path / "checkpoints" / str(step)) for step in first.checkpoints[-1:]),
        *(("record", path / name) for name in first.records),
        *(("samples", path / name) for name, _ in first.files if name.startswith("samples/samples_")),
        *(("plot", path / name) for name, _ in first.files if name.startswith("plots/")),
        *(("metrics", path / name) for name, _ in first.files if name == "metrics.jsonl"),
        ("report", target),
    ]
    lines = [f"{kind:<11}{output}" for kind, output in outputs]
    text = "\n".join([record_tables.results(entries).text(), "", *lines] if entries else lines)
    notes = [f"{run.path}: {note}" for run in runs.values() for note in run.notes]
    return Report(target, notes, _printable(text))


def render(runs: Mapping[str, Run]) -> str:
    """The page of these runs, by name, as HTML."""
    folder = importlib.resources.files("jvdm.reporting")
    style, script = (folder.joinpath(f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    environment = jinja2.Environment(
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else _printable(str(value)),
        loader=jinja2.PackageLoader("jvdm.reporting", ""),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(REPORT).render(
        **page.content(runs),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=style,
        version=jvdm.__version__,
    )


def _printable(text: str) -> str:
    """Text with a replacement character for whatever has no glyph.

    Control characters are not allowed in HTML, lone surrogates are not allowed in UTF-8, and marks of
    direction would let one name look like another.
    """
    return "".join(c if c.isprintable() or c in "\n\t\xa0" else "\ufffd" for c in text)
