"""What each --mode does."""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Sequence
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
from jvdm.core.files import write_arrays, write_atomically
from jvdm.core.keys import root_key
from jvdm.core.progress import Progress
from jvdm.core.registry import Config
from jvdm.core.tables import table, with_error
from jvdm.evaluation import passes, record, suite
from jvdm.evaluation.ode import ODE
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
    """What a mode is asked for.

    Attributes:
        config: all of it; None for a report that is given none.
        workdir: of the run.
        checkpoint: another one than the workdir's newest; with --mode=import the file to import.
        source: the codebase that an imported checkpoint is from.
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
    """--mode=eval: bits/dim of the averaged weights over the test split, by every estimator."""
    config, workdir = request.config, request.workdir
    suite.names(config)
    mesh = sharding.make_mesh()
    trained = load_trained(request, mesh)
    dataset = data.load(config.data.source, num_levels=config.data.num_levels, data_dir=config.data.data_dir)
    subject = data.Subject(
        name=dataset.name, version=dataset.version, split="test", images=dataset.test, names=None
    ).first(config.eval.num_images)
    data.check_shape(subject, trained.model.image_shape)
    results, stores = [], []
    for evaluation in suite.evaluate(config, trained, subject, mesh, workdir.eval):
        result = evaluation.result
        results.append(result)
        stores.append(evaluation.store)
        if processes.is_main():
            result.write(workdir.eval / f"{result.name}.json")
            if "diffusion" in evaluation.rows:
                _plot_loss(evaluation, workdir)
    rows = [result.row() for result in results]
    if dataset.log_density is not None:
        nats = -dataset.log_density(subject.images)
        error = record.standard_error(nats)
        rows.append({"estimator": "true density", "nats": with_error(nats.mean(), error or 0.0)})
    if trained.model.num_dims == 2 and not trained.model.num_levels:
        _plot_density(config, trained, dataset, mesh, workdir)
    # Now that nothing more can be stopped: a pass that is does not lose those before it.
    for store in stores:
        store.discard()
    if processes.is_main():
        for picture in inspection.plot_schedule(trained.model, trained.params, subject.images, workdir):
            print(f"plot    {picture}")
        print(table(rows))
        for result in results:
            draws = f"{result.num_draws} draw{'s' * (result.num_draws > 1)}"
            print(
                f"{subject.name} {subject.split}: at most {result.text()} {result.units} by "
                f"{result.description()} ({result.num_images} images, {draws} each) = {result.terms_text()}"
            )
        for result in results:
            print(f"record  {workdir.eval / result.name}.json")


def _plot_density(
    config: Config, trained: Trained, dataset: data.Dataset, mesh: Mesh, workdir: Workdir
) -> None:
    """The density in the plane by the ODE, beside the true one where it is known, as `plots/density.png`."""
    side, extent = 80, 1.1 * float(np.abs(dataset.test).max())
    axis = (np.arange(side) + 0.5) / side * 2.0 * extent - extent
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 1, 1, 2).astype(np.float32)
    estimator = ODE(for_evaluation(trained.model, 0), mesh, config.eval.ode)
    rows = passes.run(estimator, trained.params, grid, root_key(config.seed, "density"))
    log_p = {"by the ODE": -passes.bits_per_dim(rows, estimator.terms).mean(axis=1)}
    if dataset.log_density is not None:
        log_p["true density"] = dataset.log_density(grid)
    if processes.is_main():
        picture = workdir.plots / "density.png"
        plane.densities({k: v.reshape(side, side) for k, v in log_p.items()}, extent, picture)
        print(f"plot    {picture}")


def _plot_loss(evaluation: suite.Evaluation, workdir: Workdir) -> None:
    result, rows = evaluation.result, evaluation.rows
    picture = workdir.plots / f"loss_against_gamma_{result.name}.png"
    plots.loss_against_gamma(
        rows["gamma"].ravel(), rows["diffusion"].ravel(), picture, total=result.value, units=result.units
    )
    print(f"plot    {picture}")


def score(request: Request) -> None:
    """--mode=score: bits/dim of every image of any data, one CSV per estimator."""
    config, workdir = request.config, request.workdir
    suite.names(config)
    mesh = sharding.make_mesh()
    trained = load_trained(request, mesh)
    subject = data.load_subject(
        config.score.source or config.data.source,
        config.score.split,
        num_levels=trained.model.num_levels,
        data_dir=config.data.data_dir,
    ).first(config.score.num_images)
    data.check_shape(subject, trained.model.image_shape)
    stores = []
    for evaluation in suite.evaluate(config, trained, subject, mesh, workdir.scores):
        stores.append(evaluation.store)
        if processes.is_main():
            result = evaluation.result
            where = f"{subject.name}_{subject.split}".replace("/", "_").replace(":", "_")
            path = workdir.scores / f"{where}_{result.name}.csv"
            text = suite.csv_text(evaluation, subject)
            write_atomically(path, lambda file, text=text: file.write(text.encode()))
            result.write(path.with_suffix(".json"))
            print(f"mean    {result.text()} {result.units} by {result.description()}")
            print(f"scores  {path}")
    for store in stores:
        store.discard()


def sample(request: Request) -> None:
    """--mode=sample: `samples_<N>x<H>x<W>x<C>.npz` and a grid as PNG."""
    config, workdir = request.config, request.workdir
    mesh = sharding.make_mesh()
    trained = load_trained(request, mesh)
    model = for_evaluation(trained.model)

    def test_images():
        source = config.data.source
        return data.load(source, num_levels=config.data.num_levels, data_dir=config.data.data_dir).test

    key = root_key(config.seed, "latents")
    latents = given_latents(config.sample.latents, model, trained.params, test_images, key)
    sampling = Sampling(
        model,
        mesh,
        config.sample,
        batch_size=min(config.sample.batch_size, config.sample.num_images),
        latents=latents,
    )
    depends_on = _samples_depend_on(config, trained, latents)
    store = passes.Store(workdir.samples / f"step{trained.step}.partial", depends_on)
    with Progress(
        config.sample.num_images, label="sample", unit="image", shown=processes.is_main()
    ) as progress:
        images, log_likelihood, latents = sampling(
            trained.params,
            config.sample.num_images,
            root_key(config.seed, "sample"),
            num_steps=config.sample.steps,
            on_batch=progress.update,
            store=store,
        )
    if processes.is_main():
        path = workdir.samples / f"samples_{'x'.join(map(str, images.shape))}.npz"
        more = {} if log_likelihood is None else {"log_likelihood": log_likelihood}
        image_lib.write_npz(path, images, **more)
        store.discard()
        print(f"samples {path}")
        if latents is not None:
            path_latents = workdir.samples / f"latents_{'x'.join(map(str, latents.shape))}.npz"
            write_arrays(path_latents, latents)
            print(f"latents {path_latents}")
        levels = trained.model.num_levels
        shown = image_lib.picture(images[:256] if levels else images, levels)
        if shown is not None:
            image_lib.write_png(path.with_suffix(".png"), shown)
            print(f"grid    {path.with_suffix('.png')}")
        if trained.model.num_dims == 2 and not trained.model.num_levels:
            _plot_trajectories(config, trained, workdir)


def _samples_depend_on(config: Config, trained: Trained, latents: np.ndarray | None) -> dict[str, Any]:
    """What sample i depends on: not on the number of samples, on batch size or number of devices."""
    section = config.sample.to_dict()
    for name in ("num_images", "batch_size"):
        del section[name]
    kept = {"model": config_lib.model_fields(config), "sample": section, "seed": config.seed}
    weights = record.weights_hash(trained.params)
    versions = record.environment()["versions"]
    given = record.weights_hash(latents)
    return {**kept, "step": trained.step, "weights": weights, "latents": given, "versions": versions}


def _plot_trajectories(config: Config, trained: Trained, workdir: Workdir) -> None:
    """How the reverse SDE and the ODE of the same family make samples, as `samples/trajectories.png`."""
    steps = 10 * math.ceil(config.sample.steps / 10)
    paths = {
        f"λ = {lam:g}": trajectories(
            trained.model, trained.params, root_key(config.seed, "sample"), lam=lam, num_steps=steps, every=10
        )
        for lam in (0.0, 1.0)
    }
    picture = workdir.samples / "trajectories.png"
    plane.trajectories({title: z.reshape(*z.shape[:2], 2) for title, z in paths.items()}, picture)
    print(f"plot    {picture}")


def import_(request: Request) -> None:
    """--mode=import: a checkpoint of another codebase becomes one of jvdm."""
    config, workdir, checkpoint, source, _ = request
    if jax.process_count() > 1:
        raise UserError("--mode=import is for one process: --distributed=off")
    if not source or source not in importers.IMPORTERS:
        raise unknown("--source", source, importers.IMPORTERS)
    if not checkpoint:
        raise UserError("--mode=import needs --checkpoint=PATH, the checkpoint to import")
    shape, num_levels = data.image_spec(config.data.source, num_levels=config.data.num_levels)
    model = model_lib.build(config, shape, num_levels)
    imported = importers.load(source, checkpoint, model)
    workdir.prepare()
    if restoring.steps_in(workdir.checkpoints):
        raise UserError(f"--workdir={workdir.path} holds checkpoints already; give another")
    target = checkpoints.Checkpoints(workdir.checkpoints)
    state = jax.jit(lambda key: init_state(model, config, key))(jax.random.key(config.seed))
    # A fresh optimizer that has the imported step count: the warm-up is over.
    opt_state = optax.tree_utils.tree_set(state.opt_state, count=jax.numpy.int32(imported.step))
    state = dataclasses.replace(
        state,
        step=np.int32(imported.step),
        opt_state=opt_state,
        params=imported.params,
        ema_params=imported.ema_params,
    )
    target.save(jax.tree.map(jax.numpy.asarray, state), imported.step, None)
    target.close()
    workdir.save_config(config)
    workdir.save_data({"name": config.data.source, "image_shape": shape, "num_levels": num_levels})
    print(f"checkpoint {workdir.checkpoints / str(imported.step)}")


def report(request: Request) -> None:
    """--mode=report: a run, or several side by side, as one HTML page."""
    if not processes.is_main():
        return
    others = [pathlib.Path(path).expanduser().absolute() for path in request.compare]
    page, notes = write_report(request.workdir.path, others)
    for note in notes:
        log.warning("WARNING: %s", note)
    print(f"report  {page}")


def load_trained(request: Request, mesh: Mesh) -> Trained:
    """The averaged weights of a checkpoint, with the model of the config.

    Raises:
        UserError: no such checkpoint, a damaged one, or one of another model.
    """
    config, workdir, checkpoint = request.config, request.workdir, request.checkpoint
    path = restoring.find(workdir.path, checkpoint)
    saved = Workdir(path.parent.parent)
    if saved.config.exists():
        config_lib.check_model(config_lib.read_json(saved.config), config, saved.path)
    workdir.prepare()
    is_named = checkpoint is not None and pathlib.Path(checkpoint).name.isdigit()
    return loading.restore(config, path, mesh, older=not is_named)


MODES = {
    "train": train,
    "eval": evaluate,
    "score": score,
    "sample": sample,
    "import": import_,
    "report": report,
}
