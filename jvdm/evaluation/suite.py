"""The estimators that a config selects, over a set of images, each with its record."""

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
from jvdm.data import ExampleSet
from jvdm.evaluation import passes, record
from jvdm.evaluation.elbo import RandomSliceELBO
from jvdm.evaluation.estimator import ESTIMATORS, Estimator
from jvdm.evaluation.record import Provenance, Result
from jvdm.evaluation.rows import Rows, bits_per_dim, image_errors
from jvdm.evaluation.vlb import VLB, for_evaluation
from jvdm.model import Model
from jvdm.model.checks import check_process
from jvdm.runs.loading import Trained


class Evaluation(NamedTuple):
    """One estimator's numbers.

    Attributes:
        result: the record.
        name: of its files; another one for everything that the numbers depend on.
        estimator: what made them.
        rows: of every image.
        store: the chunks on disk, to be discarded when the record is written; None if they were not kept.
    """

    result: Result
    name: str
    estimator: Estimator
    rows: Rows
    store: passes.Store | None


def names(config: Config) -> list[str]:
    """The estimators of the comma-separated `config.eval.estimators`.

    Raises:
        UserError: none, or an unknown one.
    """
    chosen = [name.strip() for name in config.eval.estimators.split(",") if name.strip()]
    if not chosen:
        raise UserError(f"config.eval.estimators names none of {', '.join(ESTIMATORS.names())}")
    for name in chosen:
        if name not in ESTIMATORS.names():
            raise unknown("config.eval.estimators", name, ESTIMATORS.names())
    return list(dict.fromkeys(chosen))


def provenance(config: Config, trained: Trained, example_set: ExampleSet) -> Provenance:
    """Where the numbers of an evaluation come from."""
    return Provenance(
        dataset=example_set.name,
        dataset_version=example_set.version,
        dataset_hash=example_set.fingerprint,
        split=example_set.split,
        num_levels=trained.model.num_levels,
        checkpoint=str(trained.path),
        step=trained.step,
        weights=trained.weights,
        weights_hash=record.weights_hash(trained.params),
        seed=config.seed,
        matmul_precision="float32, highest",
        trained_dtype=config.network.get("dtype", "float32"),
        **record.environment(),
    )


def build(config: Config, model: Model, mesh: Mesh) -> list[Estimator]:
    """The estimators that a config selects, for any number of calls of `evaluate`.

    Raises:
        UserError: an unknown one, or settings that do not go together.
    """
    components: list[Any] = [ESTIMATORS.component(name) for name in names(config)]
    return [component.from_config(config, model, mesh) for component in components]


def evaluate(
    config: Config,
    trained: Trained,
    example_set: ExampleSet,
    mesh: Mesh,
    folder: pathlib.Path | None,
    *,
    built: list[Estimator] | None = None,
    show_progress: bool = True,
    start: int = 0,
) -> Iterator[Evaluation]:
    """Every estimator in turn, resumed where an earlier call was stopped.

    Args:
        config: all of it.
        trained: weights and their model.
        example_set: images.
        mesh: has a `data` axis.
        folder: where unfinished passes are kept; None keeps nothing.
        built: by `build` from the same config; here by default.
        show_progress: on stderr.
        start: the index of the first example, by which its random numbers are chosen.

    Raises:
        UserError: settings that do not go together, or numbers that are not finite.
    """
    origin = dataclasses.replace(provenance(config, trained, example_set), first_index=start)
    built = build(config, trained.model, mesh) if built is None else built
    key = root_key(config.seed, "eval")
    params, examples = trained.params, example_set.batch
    for estimator in built:
        name, depends_on = _name(config, origin, estimator, len(example_set.images))
        store = None if folder is None else passes.Store(folder, name, depends_on)
        with contextlib.ExitStack() as stack:
            if store is not None:
                stack.enter_context(store.held())
            shown = show_progress and processes.is_main()
            progress = stack.enter_context(
                Progress(len(example_set.images), label=estimator.name, unit="image", shown=shown)
            )
            rows = passes.run(
                estimator,
                params,
                examples,
                key,
                quantity="bpd" if trained.model.num_levels else "nats",
                on_chunk=lambda done, values, progress=progress: progress.update(done, **values),
                store=store,
                start=start,
            )
        result = estimator.result(rows, origin, params=params, examples=examples, key=key)
        yield Evaluation(result, name if store is None else store.name, estimator, rows, store)


def _name(
    config: Config, origin: Provenance, estimator: Estimator, num_images: int
) -> tuple[str, dict[str, Any]]:
    """What is readable of the name of a pass, and what its numbers depend on."""
    kind = estimator.file_name() + ("_standard_prior" if config.model.prior == "standard" else "")
    name = f"{kind}_step{origin.step}_{num_images}x{estimator.draws}_seed{config.seed}"
    return name, _depends_on(config, origin, estimator)


def during_training(config: Config, model: Model, mesh: Mesh) -> Estimator:
    """The estimator that training logs: the variational bound, or the random-slice ELBO if there is none."""
    model = for_evaluation(model)
    sizes = {"batch_size": config.eval.batch_size, "draws": config.training.eval_draws}
    if model.has_bound:
        return VLB(model, mesh, **sizes)
    check_process(model.process, "is_markov", "the ELBO that training logs of continuous data")
    return RandomSliceELBO(model, mesh, config.eval.elbo, **sizes)


def _depends_on(config: Config, origin: Provenance, estimator: Estimator) -> dict[str, Any]:
    """What a pass's numbers depend on: not on batch size, number of devices, or where weights lie."""
    fields = dataclasses.asdict(origin)
    del fields["num_devices"], fields["checkpoint"]
    depends_on = {
        "provenance": fields,
        "model": {**config_lib.model_fields(config), "time_density": config.time_density.to_dict()},
        "prior": config.model.prior,
        "estimator": estimator.name,
        "settings": estimator.settings(),
        "draws": estimator.draws,
    }
    return json.loads(json.dumps(depends_on))


def csv_text(evaluation: Evaluation, example_set: ExampleSet) -> str:
    """One line per image: its name or position, bits/dim, Monte-Carlo error, terms, NFE."""
    estimator, rows = evaluation.estimator, evaluation.rows
    units = evaluation.result.units.replace("bits/dim", "bits_per_dim")
    columns: dict[str, np.ndarray] = {units: bits_per_dim(rows, estimator.terms).mean(axis=1)}
    errors = image_errors(estimator, rows)
    if errors is not None:
        columns["monte_carlo_error"] = errors
    columns.update({name: np.asarray(rows[name], np.float64).mean(axis=1) for name in estimator.terms})
    columns.update({name: np.asarray(rows[name], np.float64).mean(axis=1) for name in estimator.shown})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *columns])
    for i in range(len(example_set.images)):
        name = example_set.names[i] if example_set.names else str(i)
        writer.writerow([name, *(f"{column[i]:.6f}" for column in columns.values())])
    return text.getvalue()
