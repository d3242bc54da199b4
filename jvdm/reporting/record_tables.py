"""Records of evaluations as tables of the report."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jvdm import config as config_lib
from jvdm.core.tables import difference_text, with_error
from jvdm.reporting.parts import Column, Table

# Groups of fields, by the beginning of their dotted names; the first that fits takes a field.
_GROUPS = {
    "number": (
        "estimator", "is_bound", "value", "units", "standard_error", "monte_carlo_error", "num_", "timesteps",
        "time_density", "prior",
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
    "prior": "prior at t = 1",
    "num_images": "images",
    "num_draws": "draws per image",
    "surrogate.value": "as released (no bound)",
    "surrogate.charge": "charge as released",
    "surrogate.difference": "why it is not a bound",
    "ode.importance_samples": "importance samples K",
    "ode.mean_nfe": "NFE, mean",
    "ode.max_nfe": "NFE, maximum",
    "ode.solver_error.bias": "solver error",
    "ode.solver_error.finer": "solver error, against",
    "provenance.matmul_precision": "precision",
    "provenance.weights_hash": "weights hash",
    "provenance.dataset_hash": "data hash",
    "provenance.num_levels": "levels",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A record and its names.

    Attributes:
        run: the name of its run.
        name: its path in the workdir.
        record: the JSON.
        label: in words, different for every record.
    """

    run: str
    name: str
    record: Mapping[str, Any]
    label: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """A number at the head of the page: what it is, its error with the units, and lines below."""

    title: str
    value: str
    error: str
    details: Sequence[str]


def labelled(entries: Sequence[Entry], *, with_run: bool) -> list[Entry]:
    """Give the entries the shortest labels that tell them apart."""
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
    text = record["description"] if "description" in record else _words(record)
    if not isinstance(text, str):
        raise TypeError(f"the description is {text!r}, not a text")
    return text


def value_text(record: Mapping[str, Any]) -> str:
    """The result with its error."""
    error = record["standard_error"]
    return f"{record['value']:.4f}" if error is None else with_error(record["value"], error)


def row(record: Mapping[str, Any]) -> dict[str, str | None]:
    """What the table of results shows of a record, None where there is nothing to show."""
    origin, ode = record["provenance"], record["ode"] or {}
    monte_carlo, surrogate = record.get("monte_carlo_error"), record.get("surrogate")
    latent = record["terms"].get("latent")
    return {
        record["units"]: value_text(record),
        "Monte-Carlo": None if monte_carlo is None else f"{monte_carlo:.4f}",
        "bound": "upper" if record.get("is_bound") else "no",
        "data": f"{origin['dataset']} {origin['split']}",
        "latent": f"{latent['mean']:.4f}" if latent else None,
        "solver error": _solver_error(ode),
        "NFE": f"{ode['mean_nfe']:.0f}" if ode else None,
        "images": str(record["num_images"]),
        "draws": str(record["num_draws"]),
        "seed": str(origin.get("seed", "")),
        "step": f"{origin['step']:,}",
        "as released": f"{surrogate['value']:.4f} (no bound)" if surrogate else None,
    }


def results(entries: Sequence[Entry]) -> Table:
    """One line for each record."""
    rows = [{"evaluation": entry.label, **row(entry.record)} for entry in entries]
    units = sorted({entry.record["units"] for entry in entries})
    names = list(dict.fromkeys(["evaluation", *units, *(name for each in rows for name in each)]))
    # Without an ODE or a latent, some columns would be empty.
    names = [name for name in names if any(each.get(name) for each in rows)]
    return Table(
        caption="Mean over images ± standard error",
        columns=[
            Column(name, "text" if name in ("evaluation", "bound", "data") else "number") for name in names
        ],
        groups={"": [[each.get(name) for name in names] for each in rows]},
    )


def terms(entries: Sequence[Entry]) -> Table:
    """The decomposition of each record."""
    names = list(dict.fromkeys(name for entry in entries for name in entry.record["terms"]))
    rows = []
    for entry in entries:
        found = entry.record["terms"]
        cells = [_term(found[name]) if name in found else None for name in names]
        rows.append([entry.label, *cells, value_text(entry.record)])
    numbers = [Column(name.replace("_", " "), "number") for name in (*names, "sum")]
    return Table(
        caption="Terms, each with its standard error",
        columns=[Column("evaluation"), *numbers],
        groups={"": rows},
    )


def everything(entries: Sequence[Entry]) -> Table:
    """Every field of every record except its terms, a column for each record."""
    flat = [_fields(entry.record) for entry in entries]
    fields = list(dict.fromkeys(field for each in flat for field in each))
    groups: dict[str, list[list[str | None]]] = {"": [["file", *(entry.name for entry in entries)]]}
    for group, beginnings in _GROUPS.items():
        inside = [field for field in fields if field.startswith(beginnings)]
        fields = [field for field in fields if field not in inside]
        rows = [[_name(field), *(_cell(each.get(field)) for each in flat)] for field in inside]
        if rows := [each for each in rows if any(cell is not None for cell in each[1:])]:
            groups[group] = rows
    columns = [Column("field"), *(Column(entry.label) for entry in entries)]
    return Table(caption="Every field of the records", columns=columns, groups=groups)


def _fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted name; without what is elsewhere on the page."""
    shown = {name: value for name, value in record.items() if name not in ("terms", "description")}
    fields = dict(config_lib.leaves(shown))
    if "ode.prior" in fields:  # of format 1
        fields["prior"] = fields.pop("ode.prior")
    return fields


def card(record: Mapping[str, Any]) -> Card:
    """The number at the head of the page."""
    value, sign, error = value_text(record).partition(" ± ")
    origin = record["provenance"]
    bound = "upper bound" if record.get("is_bound") else "no bound"
    details = [f"{bound} · {origin['dataset']} {origin['split']}, step {origin['step']:,}"]
    if (solver := _solver_error(record["ode"] or {})) is not None:
        details.append(f"solver error {solver}")
    title = description(record)
    return Card(title=title, value=value, error=f"{sign}{error} {record['units']}", details=details)


def environment(record: Mapping[str, Any]) -> dict[str, str]:
    """The devices and versions of a record."""
    origin = record["provenance"]
    found = {
        "device": origin.get("device"),
        "devices": origin.get("num_devices"),
        "precision": origin.get("matmul_precision"),
        "training dtype": origin.get("trained_dtype"),
        **{f"version of {name}": version for name, version in (origin.get("versions") or {}).items()},
        **(origin.get("settings") or {}),
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def check(record: Any) -> None:
    """Check that a record can be shown.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it cannot.
    """
    entry = labelled([Entry(run="", name="", record=record)], with_run=False)
    for show in (results, terms, everything):
        show(entry)
    card(record)
    environment(record)


def _words(record: Mapping[str, Any]) -> str:
    """The estimator in words, from a record of format 1, which has no description."""
    ode, slices, timesteps = record.get("ode"), record.get("slices"), record.get("timesteps", 0)
    if record["estimator"] == "elbo" and slices:
        probes = slices["trace"].get("probes")
        trace = f"{probes} probe{'s' * (probes > 1)}" if probes else "exact trace"
        return f"ELBO, random slice, {trace}"
    if record["estimator"] == "scoreflow" and slices:
        return f"ScoreFlow bound, from t = {slices['epsilon']:g}"
    if not ode:
        return f"VLB, T = {timesteps}" if timesteps else "VLB, continuous"
    name = ode["dequantization"]["name"].replace("_", " ")
    return "ODE" if name == "none" else f"ODE, {name}, K = {ode['importance_samples']}"


def _solver_error(ode: Mapping[str, Any]) -> str | None:
    solver = ode.get("solver_error")
    return difference_text(solver["bias"], solver["standard_error"]) if solver else None


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
