"""Several runs side by side: their evaluations in one table, their curves in one plot."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jvdm.core.errors import UserError
from jvdm.core.tables import difference_text, with_error
from jvdm.reporting import plots


def records(workdir: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The records of a workdir's evaluations, by name.

    Raises:
        UserError: one cannot be read.
    """
    found = {}
    for path in sorted(workdir.glob("eval/*.json")):
        try:
            found[path.stem] = json.loads(path.read_text())
            row(found[path.stem])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a record of an evaluation ({error})") from error
    return found


def row(record: Mapping[str, Any]) -> dict[str, str]:
    """What a table shows of one record."""
    error, number, origin = record["standard_error"], record["value"], record["provenance"]
    ode = record["ode"] or {}
    solver = ode.get("solver_error")
    surrogate = record.get("surrogate")
    more = {} if surrogate is None else {"as released": f"{surrogate['value']:.4f} (no bound)"}
    return {
        "data": f"{origin['dataset']} {origin['split']}",
        record["units"]: f"{number:.4f}" if error is None else with_error(number, error),
        **more,
        "latent": f"{record['terms']['latent']['mean']:.4f}" if "latent" in record["terms"] else "-",
        "solver": difference_text(solver["bias"], solver["standard_error"]) if solver else "-",
        "NFE": f"{ode['mean_nfe']:.0f}" if ode else "-",
        "images": str(record["num_images"]),
        "draws": str(record["num_draws"]),
    }


def curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], path: str | os.PathLike[str], *, title: str = ""
) -> None:
    """Draws the loss on test images of every run against the step.

    Args:
        runs: records of `read_metrics` by the run's name.
        path: the PNG.
        title: of the plot.

    Raises:
        UserError: the file cannot be written.
    """
    figure = plots.figure_of(9.0, 4.6)
    axes = figure.add_subplot()
    names = {name for metrics in runs.values() for each in metrics for name in each}
    quantity = "test/bpd" if "test/bpd" in names else "test/nats"
    units = "bits/dim" if quantity == "test/bpd" else "nats"
    plots.style(axes, "training step", f"{units}, test", title, num_ticks=9)
    late = []
    for i, (name, metrics) in enumerate(runs.items()):
        points = np.array([(m["step"], m[quantity]) for m in metrics if quantity in m], float).reshape(-1, 2)
        axes.plot(*points.T, lw=1.5, marker="o", ms=3.5, color=f"C{i}", label=name)
        late.extend(points[len(points) // 4 :, 1])
    if late:
        margin = 0.06 * (max(late) - min(late)) or 0.1
        axes.set_ylim(min(late) - margin, max(late) + margin)
        axes.legend(frameon=False, ncols=2, labelcolor=plots.INK)
    plots.save(figure, path)
