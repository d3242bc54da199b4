"""The estimators that a config asks for, over a set of images, each with its record."""

import contextlib
import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jvdm import config as config_lib
from jvdm.core import processes
from jvdm.core.errors import UserError, unknown
from jvdm.core.keys import root_key
from jvdm.core.progress import Progress
from jvdm.core.registry import Config
from jvdm.data import Subject
from jvdm.evaluation import passes, record
from jvdm.evaluation.elbo import RandomSliceELBO, ScoreFlowBound
from jvdm.evaluation.ode import ODE
from jvdm.evaluation.record import Provenance, Result
from jvdm.evaluation.vlb import VLB, for_evaluation
from jvdm.model import Model
from jvdm.runs.loading import Trained

ESTIMATORS = ("vlb", "ode", "elbo", "scoreflow")


class Evaluation(NamedTuple):
    """One estimator's numbers.

    Attributes:
        result: the record.
        estimator: what made them.
        rows: of every image.
        store: the chunks on disk; to be discarded when the record is written.
    """

    result: Result
    estimator: Any
    rows: passes.Rows
    store: passes.Store


def names(config: Config) -> list[str]:
    """The estimators of the comma-separated `config.eval.estimators`.

    Raises:
        UserError: none, or an unknown one.
    """
    chosen = [name.strip() for name in config.eval.estimators.split(",") if name.strip()]
    if not chosen:
        raise UserError(f"config.eval.estimators names none of {', '.join(ESTIMATORS)}")
    for name in chosen:
        if name not in ESTIMATORS:
            raise unknown("config.eval.estimators", name, ESTIMATORS)
    return list(dict.fromkeys(chosen))


def provenance(config: Config, trained: Trained, subject: Subject) -> Provenance:
    """Where the numbers of an evaluation come from."""
    return Provenance(
        dataset=subject.name,
        dataset_version=subject.version,
        dataset_hash=subject.fingerprint,
        split=subject.split,
        num_levels=trained.model.num_levels,
        checkpoint=str(trained.path),
        step=trained.step,
        weights="ema",
        weights_hash=record.weights_hash(trained.params),
        seed=config.seed,
        matmul_precision="float32, highest",
        trained_dtype=config.network.get("dtype", "float32"),
        **record.environment(),
    )


class Built(NamedTuple):
    """A compiled estimator and what its record says of it."""

    estimator: Any
    draws: int
    timesteps: int = 0
    ode: dict[str, Any] | None = None
    slices: dict[str, Any] | None = None


def build(config: Config, model: Model, mesh: Mesh) -> list[Built]:
    """The estimators that a config asks for, to be given to `evaluate` any number of times.

    Raises:
        UserError: an unknown one, or settings that do not go together.
    """
    return [_build(name, config, model, mesh) for name in names(config)]


def evaluate(
    config: Config,
    trained: Trained,
    subject: Subject,
    mesh: Mesh,
    folder: pathlib.Path,
    *,
    built: list[Built] | None = None,
    show_progress: bool = True,
) -> Iterator[Evaluation]:
    """Every estimator in turn, resumed where an earlier call was stopped.

    Args:
        config: all of it.
        trained: weights and their model.
        subject: images.
        mesh: has a `data` axis.
        folder: where unfinished passes are kept.
        built: by `build` from the same config; here by default.
        show_progress: on stderr.

    Raises:
        UserError: settings that do not go together, or numbers that are not finite.
    """
    origin = provenance(config, trained, subject)
    built = build(config, trained.model, mesh) if built is None else built
    key = root_key(config.seed, "eval")
    for one in built:
        estimator, draws = one.estimator, one.draws
        kind = record.kind_name(estimator.name, one.timesteps, one.ode, one.slices)
        name = f"{kind}_step{trained.step}_{len(subject.images)}x{draws}_seed{config.seed}"
        store = passes.Store(folder / f"{name}.partial", _depends_on(config, origin, one, kind))
        with (
            Progress(len(subject.images), label=estimator.name, unit="image")
            if show_progress and processes.is_main()
            else contextlib.nullcontext()
        ) as progress:
            rows = passes.run(
                estimator,
                trained.params,
                subject.images,
                key,
                quantity="bpd" if trained.model.num_levels else "nats",
                on_chunk=lambda done, values, progress=progress: (
                    progress.update(done, **values) if progress else None
                ),
                store=store,
            )
        if one.ode is not None:
            error = None
            if config.eval.ode.check_images:
                error = estimator.solver_error(
                    trained.params, subject.images, key, num_images=config.eval.ode.check_images
                )
            result = record.ode_result(estimator, rows, origin, settings=one.ode, error=error)
        elif one.slices is not None:
            result = record.slice_result(estimator, rows, origin, settings=one.slices)
        else:
            # As `for_evaluation` has it.
            density = config.time_density.name if trained.model.time_density.unbiased else "uniform"
            density = None if one.timesteps else density
            result = record.vlb_result(estimator, rows, origin, timesteps=one.timesteps, time_density=density)
        yield Evaluation(result, estimator, rows, store)


def _build(name: str, config: Config, model: Model, mesh: Mesh) -> Built:
    """The estimator of that name."""
    sizes = {"batch_size": config.eval.batch_size, "draws": config.eval.draws}
    if name == "vlb":
        timesteps = model.timesteps if config.eval.timesteps < 0 else config.eval.timesteps
        return Built(VLB(for_evaluation(model, timesteps), mesh, **sizes), config.eval.draws, timesteps)
    model = for_evaluation(model, 0)
    if name == "elbo":
        section = config.eval.elbo
        estimator = RandomSliceELBO(model, mesh, section, **sizes)
        return Built(estimator, config.eval.draws, slices=section.to_dict())
    if name == "scoreflow":
        section = config.eval.scoreflow
        estimator = ScoreFlowBound(model, mesh, section, **sizes)
        return Built(estimator, config.eval.draws, slices=section.to_dict())
    ode = config.eval.ode
    settings = {part: ode[part].to_dict() for part in ("dequantization", "trace", "solver")}
    settings.update(importance_samples=ode.importance_samples, share_probes=ode.share_probes)
    return Built(ODE(model, mesh, ode), ode.draws, ode=settings)


def during_training(config: Config, model: Model, mesh: Mesh) -> Any:
    """What training watches: the variational bound, or the random-slice ELBO if there is none."""
    model = for_evaluation(model)
    sizes = {"batch_size": config.eval.batch_size, "draws": config.training.eval_draws}
    if model.has_bound:
        return VLB(model, mesh, **sizes)
    return RandomSliceELBO(model, mesh, config.eval.elbo, **sizes)


def _depends_on(config: Config, origin: Provenance, one: Built, kind: str) -> dict[str, Any]:
    """What a pass's numbers depend on: not on batch size or number of devices."""
    fields = dataclasses.asdict(origin)
    del fields["num_devices"]
    depends_on = {
        "provenance": fields,
        "model": {**config_lib.model_fields(config), "time_density": config.time_density.to_dict()},
        "ode": one.ode,
        "slices": one.slices,
        "kind": kind,
        "draws": one.draws,
    }
    return json.loads(json.dumps(depends_on))


def csv_text(evaluation: Evaluation, subject: Subject) -> str:
    """One line per image: its name or position, bits/dim, Monte-Carlo error, terms, NFE."""
    estimator, rows = evaluation.estimator, evaluation.rows
    units = evaluation.result.units.replace("bits/dim", "bits_per_dim")
    columns: dict[str, np.ndarray] = {units: passes.bits_per_dim(rows, estimator.terms).mean(axis=1)}
    errors = record.image_errors(estimator, rows)
    if errors is not None:
        columns["monte_carlo_error"] = errors
    columns.update({name: np.asarray(rows[name], np.float64).mean(axis=1) for name in estimator.terms})
    columns.update({name: np.asarray(rows[name], np.float64).mean(axis=1) for name in estimator.shown})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *columns])
    for i in range(len(subject.images)):
        name = subject.names[i] if subject.names else str(i)
        writer.writerow([name, *(f"{column[i]:.6f}" for column in columns.values())])
    return text.getvalue()
