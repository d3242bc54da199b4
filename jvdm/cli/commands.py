"""What each --mode does."""

import dataclasses
import logging
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jvdm import config as config_lib
from jvdm import data, importers
from jvdm import model as model_lib
from jvdm.core import processes, sharding
from jvdm.core.errors import UserError, unknown
from jvdm.core.files import expanded, write_arrays, write_atomically
from jvdm.core.keys import root_key
from jvdm.core.progress import Progress
from jvdm.core.registry import Config
from jvdm.core.tables import table, with_error
from jvdm.evaluation import passes, record, suite
from jvdm.evaluation.ode import ODE
from jvdm.evaluation.rows import bits_per_dim, standard_error
from jvdm.evaluation.sampling import Sampling, given_latents, trajectories
from jvdm.evaluation.vlb import for_evaluation
from jvdm.reporting import images as image_lib
from jvdm.reporting import inspection, plane, plots
from jvdm.reporting.report import write_report
from jvdm.runs import checkpoints, loading, restoring
from jvdm.runs.loading import Trained
from jvdm.runs.workdir import Workdir
from jvdm.training.loop import train as train_loop
from jvdm.training.step import init_state

log = logging.getLogger("jvdm")


class Request(NamedTuple):
    """The arguments of a mode.

    Attributes:
        config: all of it; None for a report without one.
        workdir: of the run.
        checkpoint: one other than the workdir's newest; with --mode=import the file to import.
        source: the codebase that wrote the checkpoint to import.
        compare: folders of other runs, for a report.
    """

    config: Config
    workdir: Workdir
    checkpoint: str | None = None
    source: str | None = None
    compare: Sequence[str] = ()


def train(request: Request) -> None:
    """--mode=train: run, or resume, training."""
    train_loop(request.config, request.workdir)


def evaluate(request: Request) -> None:
    """--mode=eval: the likelihood of the averaged weights on the test split, by every estimator."""
    config, workdir = request.config, request.workdir
    suite.names(config)
    mesh = sharding.make_mesh()
    trained = _load(request, mesh)
    dataset = data.load(**config.data)
    example_set = data.of_dataset(dataset, "test").first(config.eval.num_images)

    def report(evaluation: suite.Evaluation, record_path: pathlib.Path) -> None:
        if "diffusion" in evaluation.rows:
            _plot_loss(evaluation, workdir)

    done = _evaluate(config, trained, example_set, mesh, workdir.eval, report)
    ode = [path.stem for path in done if path.stem.startswith("ode_")]
    if trained.model.num_dims == 2 and not trained.model.num_levels and ode:
        _plot_density(config, trained, dataset, mesh, workdir.plots / f"density_{ode[0]}.png")
    # Nothing can be interrupted any more: a pass that is interrupted leaves those before it.
    _discard_chunks(done)
    if not processes.is_main():
        return
    results = [evaluation.result for evaluation in done.values()]
    rows = [result.row() for result in results]
    if dataset.log_density is not None:
        nats = -dataset.log_density(example_set.images)
        error = standard_error(nats)
        rows.append({"estimator": "true density", "nats": with_error(nats.mean(), error or 0.0)})
    of = passes.digest([record.weights_hash(trained.params), example_set.fingerprint])
    for picture in inspection.plot_schedule(
        trained.model, trained.params, example_set.batch, workdir, suffix=f"_step{trained.step}_{of}"
    ):
        print(f"plot    {picture}")
    print(table(rows))
    for result in results:
        draws = f"{result.num_draws} draw{'s' * (result.num_draws > 1)}"
        print(
            f"{example_set.name} {example_set.split}: at most {result.text()} {result.units} by "
            f"{result.description} ({result.num_images} images, {draws} each) = {result.terms_text()}"
        )
    for path in done:
        print(f"record  {path}")


def score(request: Request) -> None:
    """--mode=score: the likelihood of every example of any data, one CSV per estimator."""
    config, workdir = request.config, request.workdir
    suite.names(config)
    mesh = sharding.make_mesh()
    trained = _load(request, mesh)
    example_set = data.load_examples(
        config.score.source or config.data.source,
        config.score.split,
        num_levels=trained.model.num_levels,
        data_dir=config.data.data_dir,
        # Other sources than the one trained on are taken whole.
        test_fraction=config.data.test_fraction if config.score.source in ("", config.data.source) else None,
        split_seed=config.data.split_seed,
    ).first(config.score.num_images)

    def report(evaluation: suite.Evaluation, record_path: pathlib.Path) -> None:
        result, table_path = evaluation.result, record_path.with_suffix(".csv")
        text = suite.csv_text(evaluation, example_set)
        # Names of files may be any bytes.
        write_atomically(table_path, lambda file: file.write(text.encode(errors="surrogateescape")))
        print(f"mean    {result.text()} {result.units} by {result.description}")
        print(f"scores  {table_path}")

    # A file's name has 255 bytes; what is cut off is told apart by the digest at its end.
    prefix = re.sub(r"[^\w.-]", "_", f"{example_set.name}_{example_set.split}")[:80] + "_"
    if example_set.names is not None:  # a table of the same images under other names is another one
        prefix += f"{passes.digest(list(map(str, example_set.names)))}_"
    done = _evaluate(config, trained, example_set, mesh, workdir.scores, report, prefix=prefix)
    _discard_chunks(done)


def _evaluate(
    config: Config,
    trained: Trained,
    example_set: data.ExampleSet,
    mesh: Mesh,
    folder: pathlib.Path,
    report: Callable[[suite.Evaluation, pathlib.Path], None],
    *,
    prefix: str = "",
) -> dict[pathlib.Path, suite.Evaluation]:
    """Every estimator of the config over some examples, with a record of each.

    Args:
        config: all of it.
        trained: the weights.
        example_set: the examples.
        mesh: the devices.
        folder: for records and unfinished passes.
        report: called in the first process when a record is written, with the numbers and the record's path.
        prefix: of the records' names.

    Returns:
        The estimators' numbers by the paths of their records. Their chunks are still on disk.

    Raises:
        UserError: examples of another shape than the model's, or settings that do not go together.
        Preempted: the process was asked to stop.
    """
    data.check_suits(example_set, trained.model.data_shape, trained.model.num_levels)
    done = {}
    for evaluation in suite.evaluate(config, trained, example_set, mesh, folder):
        path = folder / f"{prefix}{evaluation.name}.json"
        done[path] = evaluation
        if processes.is_main():
            evaluation.result.write(path)
            report(evaluation, path)
    return done


def _discard_chunks(done: Mapping[pathlib.Path, suite.Evaluation]) -> None:
    for evaluation in done.values():
        if evaluation.store is not None:
            evaluation.store.discard()


def _plot_density(
    config: Config, trained: Trained, dataset: data.Dataset, mesh: Mesh, picture: pathlib.Path
) -> None:
    """The density in the plane by the ODE, beside the true one where it is known."""
    side, extent = 80, 1.1 * float(np.abs(dataset.test).max())
    axis = (np.arange(side) + 0.5) / side * 2.0 * extent - extent
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, *dataset.data_shape).astype(np.float32)
    estimator = ODE(for_evaluation(trained.model, 0), mesh, config.eval.ode)
    rows = passes.run(estimator, trained.params, grid, root_key(config.seed, "density"))
    log_p = {"by the ODE": -bits_per_dim(rows, estimator.terms).mean(axis=1)}
    if dataset.log_density is not None:
        log_p["true density"] = dataset.log_density(grid)
    if processes.is_main():
        plane.densities({k: v.reshape(side, side) for k, v in log_p.items()}, extent, picture)
        print(f"plot    {picture}")


def _plot_loss(evaluation: suite.Evaluation, workdir: Workdir) -> None:
    result, rows = evaluation.result, evaluation.rows
    picture = workdir.plots / f"loss_against_gamma_{evaluation.name}.png"
    plots.loss_against_gamma(
        rows["gamma"].ravel(), rows["diffusion"].ravel(), picture, total=result.value, units=result.units
    )
    print(f"plot    {picture}")


def sample(request: Request) -> None:
    """--mode=sample: `samples_<N>x<H>x<W>x<C>_<step, seed and digest>.npz` and a grid as PNG."""
    config, workdir = request.config, request.workdir
    mesh = sharding.make_mesh()
    trained = _load(request, mesh)
    model = for_evaluation(trained.model)

    def test_examples():
        return data.load(**config.data).examples("test")

    key = root_key(config.seed, "latents")
    latents = given_latents(config.sample.latents, model, trained.params, test_examples, key)
    sampling = Sampling(
        model,
        mesh,
        config.sample,
        batch_size=min(config.sample.batch_size, config.sample.num_images),
        latents=latents,
    )
    depends_on = _samples_depend_on(config, trained, latents)
    store = passes.Store(workdir.samples, f"step{trained.step}_seed{config.seed}", depends_on)
    with (
        store.held(),
        Progress(
            config.sample.num_images, label="sample", unit="image", shown=processes.is_main()
        ) as progress,
    ):
        images, log_likelihood, latents = sampling(
            trained.params,
            config.sample.num_images,
            root_key(config.seed, "sample"),
            num_steps=config.sample.steps,
            on_batch=progress.update,
            store=store,
        )
    if processes.is_main():
        path = workdir.samples / f"samples_{'x'.join(map(str, images.shape))}_{store.name}.npz"
        more = {} if log_likelihood is None else {"log_likelihood": log_likelihood}
        image_lib.write_npz(path, images, **more)
        store.discard()
        print(f"samples {path}")
        if latents is not None:
            path_latents = workdir.samples / f"latents_{'x'.join(map(str, latents.shape))}_{store.name}.npz"
            write_arrays(path_latents, latents)
            print(f"latents {path_latents}")
        levels = trained.model.num_levels
        shown = image_lib.picture(images[:256] if levels else images, levels)
        if shown is not None:
            image_lib.write_png(path.with_suffix(".png"), shown)
            print(f"grid    {path.with_suffix('.png')}")
        if trained.model.num_dims == 2 and not trained.model.num_levels and trained.model.process.drift:
            _plot_trajectories(config, trained, workdir.samples / f"trajectories_{store.name}.png")


def _samples_depend_on(config: Config, trained: Trained, latents: np.ndarray | None) -> dict[str, Any]:
    """What sample i depends on, which excludes the number of samples, the batch size and the devices."""
    section = config.sample.to_dict()
    for name in ("num_images", "batch_size"):
        del section[name]
    kept = {"model": config_lib.model_fields(config), "sample": section, "seed": config.seed}
    kept["prior"] = config.model.prior
    weights = record.weights_hash(trained.params)
    environment = {name: record.environment()[name] for name in ("versions", "settings", "random_numbers")}
    given = record.weights_hash(latents)
    return {**kept, "step": trained.step, "weights": weights, "latents": given, **environment}


def _plot_trajectories(config: Config, trained: Trained, picture: pathlib.Path) -> None:
    """How the reverse SDE and the ODE of the same family make samples."""
    steps = 10 * math.ceil(config.sample.steps / 10)
    paths = {
        f"λ = {lam:g}": trajectories(
            trained.model, trained.params, root_key(config.seed, "sample"), lam=lam, num_steps=steps, every=10
        )
        for lam in (0.0, 1.0)
    }
    plane.trajectories({title: z.reshape(*z.shape[:2], 2) for title, z in paths.items()}, picture)
    print(f"plot    {picture}")


def import_(request: Request) -> None:
    """--mode=import: a checkpoint of another codebase becomes one of jvdm."""
    config, workdir, checkpoint, source, _ = request
    if jax.process_count() > 1:
        raise UserError("--mode=import is for one process: --distributed=off")
    if not source:
        choices = ", ".join(sorted(importers.IMPORTERS))
        raise UserError(f"--mode=import needs --source=NAME, the codebase that wrote it ({choices})")
    if source not in importers.IMPORTERS:
        raise unknown("--source", source, importers.IMPORTERS)
    if not checkpoint:
        raise UserError("--mode=import needs --checkpoint=PATH, the checkpoint to import")
    if restoring.steps_in(workdir.checkpoints):
        raise UserError(f"--workdir={workdir.path} holds checkpoints already; give another")
    shape, num_levels = data.data_spec(**config.data)
    model = model_lib.build(config, shape, num_levels)
    imported = importers.load(source, checkpoint, model)
    workdir.prepare()
    state = jax.jit(lambda key: init_state(model, config, key))(root_key(config.seed, "training"))
    # A fresh optimizer that has the imported step count: the warm-up is over.
    opt_state = optax.tree_utils.tree_set(state.opt_state, count=jax.numpy.int32(imported.step))
    state = dataclasses.replace(
        state,
        step=np.int32(imported.step),
        opt_state=opt_state,
        params=imported.params,
        ema_params=imported.ema_params,
    )
    state = jax.tree.map(jax.numpy.asarray, state)
    checkpoints.check_saves(workdir.path, state)
    target = checkpoints.Checkpoints(workdir.checkpoints)
    target.save(state, imported.step, None)
    target.close()
    workdir.save_config(config)
    workdir.save_data({"name": config.data.source, "data_shape": shape, "num_levels": num_levels})
    print(f"checkpoint {workdir.checkpoints / str(imported.step)}")


def report(request: Request) -> None:
    """--mode=report: a run, or several side by side, as one HTML page, and a summary as text."""
    if not processes.is_main():
        return
    others = [expanded(path, "--compare").absolute() for path in request.compare]
    written = write_report(request.workdir.path, others)
    for note in written.notes:
        log.warning("WARNING: %s", note)
    print(written.text)


def _load(request: Request, mesh: Mesh) -> Trained:
    """The weights that a mode uses, after a check that the workdir can be written.

    Raises:
        UserError: as `loading.load`, or the workdir cannot be written.
    """
    workdir = request.workdir
    trained = loading.load(workdir.path, request.checkpoint, mesh, config=request.config)
    workdir.prepare()
    return trained


MODES = {
    "train": train,
    "eval": evaluate,
    "score": score,
    "sample": sample,
    "import": import_,
    "report": report,
}
