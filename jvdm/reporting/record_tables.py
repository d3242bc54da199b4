"""Records of evaluations as tables of a page."""

import collections
import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, cast

from jvdm import config as config_lib
from jvdm.core.tables import difference_text, with_error
from jvdm.evaluation.record import Result
from jvdm.reporting import comparison
from jvdm.reporting.markup import Column, Html, element, table

# Groups of fields, by the beginning of their dotted names; what no group takes comes last.
_GROUPS = {
    "number": (
        "estimator", "is_bound", "value", "units", "standard_error", "monte_carlo_error", "num_", "timesteps",
        "time_density",
    ),
    "latent": ("latent_charge", "surrogate"),
    "ODE": ("ode",),
    "slices": ("slices",),
    "data": ("provenance.dataset", "provenance.split", "provenance.num_levels"),
    "weights": ("provenance.checkpoint", "provenance.step", "provenance.weights", "provenance.trained_dtype"),
    "computation": ("provenance.",),
    "other": ("",),
}  # fmt: skip
_NAMES = {
    "is_bound": "upper bound",
    "num_images": "images",
    "num_draws": "draws per image",
    "surrogate.value": "as released (no bound)",
    "surrogate.charge": "charge as released",
    "surrogate.difference": "why that is no bound",
    "ode.importance_samples": "importance samples K",
    "ode.mean_nfe": "NFE, mean",
    "ode.max_nfe": "NFE, largest",
    "ode.solver_error.bias": "solver error",
    "ode.solver_error.finer": "solver error, against",
    "provenance.matmul_precision": "precision",
    "provenance.weights_hash": "hash of the weights",
    "provenance.dataset_hash": "hash of the data",
    "provenance.num_levels": "levels",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A record and what it is called.

    Attributes:
        run: the name of its run.
        name: its path in the workdir.
        record: the JSON.
        label: in words, unlike every other's.
    """

    run: str
    name: str
    record: Mapping[str, Any]
    label: str = ""


def labelled(entries: Sequence[Entry], *, with_run: bool) -> list[Entry]:
    """Entries with labels that tell them apart, by as few words as that needs."""
    labels = [description(entry.record) for entry in entries]
    for i, entry in enumerate(entries):
        if entry.name.startswith("scores/"):
            labels[i] += ", scores"
        if with_run:
            labels[i] = f"{entry.run}: {labels[i]}"
    count = collections.Counter(labels)
    for i, entry in enumerate(entries):
        if count[labels[i]] > 1:
            record = entry.record
            labels[i] += (
                f", step {record['provenance']['step']}, {record['num_images']}×{record['num_draws']}"
            )
    count = collections.Counter(labels)
    return [
        dataclasses.replace(entry, label=label if count[label] == 1 else f"{label}, {entry.name}")
        for entry, label in zip(entries, labels, strict=True)
    ]


def description(record: Mapping[str, Any]) -> str:
    """The estimator in words."""
    ode = record.get("ode")
    # What Result.description reads; records of older versions lack other fields.
    view = types.SimpleNamespace(
        estimator=record["estimator"],
        timesteps=record.get("timesteps", 0),
        slices=record.get("slices"),
        ode=types.SimpleNamespace(**ode) if ode else None,
    )
    return Result.description(cast(Result, view))


def value_text(record: Mapping[str, Any]) -> str:
    """The number with its error."""
    error = record["standard_error"]
    return f"{record['value']:.4f}" if error is None else with_error(record["value"], error)


def results(entries: Sequence[Entry]) -> Html:
    """One line for each record."""
    rows = []
    for entry in entries:
        record, shown = entry.record, comparison.row(entry.record)
        monte_carlo = record.get("monte_carlo_error")
        units = record["units"]
        rows.append(
            {
                "evaluation": entry.label,
                units: shown.pop(units),
                "Monte-Carlo": None if monte_carlo is None else f"{monte_carlo:.4f}",
                "bound": "upper" if record.get("is_bound") else "no",
                **{
                    name.replace("solver", "solver error"): None if cell == "-" else cell
                    for name, cell in shown.items()
                },
                "seed": str(record["provenance"].get("seed", "")),
                "step": f"{record['provenance']['step']:,}",
            }
        )
    units = {entry.record["units"] for entry in entries}
    numbers = units | {
        "Monte-Carlo",
        "as released",
        "latent",
        "solver error",
        "NFE",
        "images",
        "draws",
        "seed",
        "step",
    }
    names = list(dict.fromkeys(["evaluation", *sorted(units), *(name for row in rows for name in row)]))
    # One solved by no ODE and one without a latent have nothing in these.
    names = [name for name in names if any(row.get(name) for row in rows)]
    columns = [Column(title=name, number=name in numbers) for name in names]
    caption = "Mean over images ± standard error"
    return table(caption, columns, [[row.get(name) for name in names] for row in rows])


def terms(entries: Sequence[Entry]) -> Html:
    """The decomposition of each record."""
    names = list(dict.fromkeys(name for entry in entries for name in entry.record["terms"]))
    rows = []
    for entry in entries:
        found = entry.record["terms"]
        cells = [_term(found[name]) if name in found else None for name in names]
        rows.append([entry.label, *cells, value_text(entry.record)])
    columns = [
        Column(title="evaluation"),
        *(Column(title=each.replace("_", " "), number=True) for each in names),
    ]
    return table("Terms, each with its standard error", [*columns, Column(title="sum", number=True)], rows)


def everything(entries: Sequence[Entry]) -> Html:
    """Every field of every record but its terms, a column for each record."""
    flat = [
        dict(config_lib.leaves({name: value for name, value in entry.record.items() if name != "terms"}))
        for entry in entries
    ]
    fields = list(dict.fromkeys(field for each in flat for field in each))
    rows: list[list[object]] = []
    taken = set()
    for group, beginnings in _GROUPS.items():
        inside = [field for field in fields if field not in taken and field.startswith(beginnings)]
        taken.update(inside)
        shown = [[_name(field), *(_cell(each.get(field)) for each in flat)] for field in inside]
        shown = [row for row in shown if any(cell is not None for cell in row[1:])]
        if shown:
            rows += [[group], *shown]
    names = [entry.name for entry in entries]
    columns = [Column(title="field"), *(Column(title=entry.label) for entry in entries)]
    return table("Every field of the records", columns, [["file", *names], *rows])


def card(record: Mapping[str, Any]) -> Html:
    """The number at the head of the page."""
    value, sign, error = value_text(record).partition(" ± ")
    origin = record["provenance"]
    bound = "upper bound" if record.get("is_bound") else "no bound"
    lines = [
        element("p", description(record), class_="what"),
        element(
            "p", element("span", value, class_="value"), f"{sign}{error} {record['units']}", class_="big"
        ),
        element(
            "p", f"{bound} · {origin['dataset']} {origin['split']}, step {origin['step']:,}", class_="small"
        ),
    ]
    if solver := (record["ode"] or {}).get("solver_error"):
        shown = difference_text(solver["bias"], solver["standard_error"])
        lines.append(element("p", f"solver error {shown}", class_="small"))
    return element("li", *lines)


def environment(record: Mapping[str, Any]) -> dict[str, str]:
    """What it was computed on and with."""
    origin = record["provenance"]
    found = {
        "device": origin.get("device"),
        "devices": origin.get("num_devices"),
        "precision": origin.get("matmul_precision"),
        "dtype in training": origin.get("trained_dtype"),
        **{f"version of {name}": version for name, version in (origin.get("versions") or {}).items()},
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def check(record: Any) -> None:
    """A record is one that can be shown.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is none.
    """
    entry = labelled([Entry(run="", name="", record=record)], with_run=False)
    for show in (results, terms, everything):
        show(entry)
    card(record)
    environment(record)


def _term(term: Mapping[str, Any]) -> str:
    error = term["standard_error"]
    return f"{term['mean']:.4f}" if error is None else with_error(term["mean"], error)


def _name(field: str) -> str:
    if field in _NAMES:
        return _NAMES[field]
    for prefix in ("provenance.", "ode.", "slices.", "surrogate."):
        field = field.removeprefix(prefix)
    return field.replace("_", " ").replace(".", ", ")


def _cell(value: Any) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return None if value is None else str(value)
