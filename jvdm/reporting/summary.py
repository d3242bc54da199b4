"""`python -m jvdm.reporting.summary WORKDIR`: what a run left behind, and its numbers."""

import pathlib
import sys

from jvdm.core.errors import UserError
from jvdm.core.tables import table
from jvdm.reporting import comparison


def summary(workdir: pathlib.Path) -> str:
    """A table of the workdir's evaluations and the paths of its outputs.

    Raises:
        UserError: there is no such workdir, or it holds a record that cannot be read.
    """
    if not workdir.is_dir():
        raise UserError(f"{workdir}: no such workdir")
    rows = [{"evaluation": name, **comparison.row(it)} for name, it in comparison.records(workdir).items()]
    groups = {
        "checkpoint": sorted(workdir.glob("checkpoints/[0-9]*"), key=lambda p: int(p.name))[-1:],
        "record": sorted(workdir.glob("eval/*.json")),
        "samples": sorted(workdir.glob("samples/samples_*")),
        "curves": sorted(workdir.glob("plots/*.png")),
        "metrics": sorted(workdir.glob("metrics.jsonl")),
        "report": sorted(workdir.glob("report.html")),
    }
    lines = [f"{name:<11}{path}" for name, paths in groups.items() for path in paths]
    return "\n".join(([table(rows), ""] if rows else []) + lines)


if __name__ == "__main__":
    try:
        print(summary(pathlib.Path(sys.argv[1]).absolute()))
    except (UserError, IndexError) as mistake:
        sys.exit(f"jvdm: error: {mistake}")
