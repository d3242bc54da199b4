"""What each --mode does."""

import dataclasses
import logging
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jvdm import config as config_lib
from jvdm import data, importers, sharding
from jvdm import model as model_lib
from jvdm.errors import UserError, unknown
from jvdm.evaluation.record import Result, vlb_result
from jvdm.evaluation.vlb import Evaluator, for_evaluation
from jvdm.keys import root_key
from jvdm.registry import Config
from jvdm.reporting import images as image_lib
from jvdm.reporting import plots
from jvdm.reporting.progress import Progress
from jvdm.reporting.tables import table
from jvdm.sampling import Sampling
from jvdm.training import checkpoints
from jvdm.training.loop import plot_schedule
from jvdm.training.loop import train as train_loop
from jvdm.training.step import init_state
from jvdm.workdir import Workdir

log = logging.getLogger("jvdm")


class Trained(NamedTuple):
    """A model with its averaged weights, and where they came from."""

    model: model_lib.Model
    params: Any
    step: int
    path: pathlib.Path


def train(config: Config, workdir: Workdir, checkpoint: str | None, source: str | None) -> None:
    """--mode=train: run, or resume, training."""
    if checkpoint:
        raise UserError("--mode=train resumes the newest checkpoint of --workdir: --checkpoint is not for it")
    train_loop(config, workdir)


def evaluate(config: Config, workdir: Workdir, checkpoint: str | None, source: str | None) -> None:
    """--mode=eval: bits/dim of the averaged weights over the test split."""
    mesh = sharding.make_mesh()
    trained = load_trained(config, workdir, checkpoint, mesh)
    timesteps = trained.model.timesteps if config.eval.timesteps < 0 else config.eval.timesteps
    model = for_evaluation(trained.model, timesteps)
    dataset = data.load(config.data.source, num_levels=config.data.num_levels, data_dir=config.data.data_dir)
    images = dataset.test[: config.eval.num_images or None]
    evaluator = Evaluator(model, mesh, batch_size=config.eval.batch_size, draws=config.eval.draws)
    with Progress(len(images), label="eval", unit="image") as progress:
        image_terms = evaluator(
            trained.params,
            images,
            root_key(config.seed, "eval"),
            on_batch=lambda done, bpd: progress.update(done, bpd=bpd),
        )
    result = vlb_result(
        image_terms,
        timesteps=timesteps,
        num_levels=model.num_levels,
        dataset=dataset.name,
        dataset_version=dataset.version,
        dataset_hash=dataset.fingerprint("test"),
        split="test" if len(images) == len(dataset.test) else f"test[:{len(images)}]",
        checkpoint=str(trained.path),
        step=trained.step,
        weights="ema",
        seed=config.seed,
    )
    if jax.process_index() == 0:
        _report(result, image_terms, trained, workdir)


def _report(result: Result, image_terms, trained: Trained, workdir: Workdir) -> None:
    time = f"T{result.timesteps}" if result.timesteps else "continuous"
    name = f"vlb_{time}_step{result.step}_{result.num_images}x{result.num_draws}_seed{result.seed}"
    path = workdir.eval / f"{name}.json"
    result.write(path)
    picture = workdir.plots / f"loss_against_gamma_{name}.png"
    plots.loss_against_gamma(
        image_terms.gamma.ravel(),
        image_terms.terms.diffusion.ravel(),
        picture,
        bits_per_dim_total=result.bits_per_dim,
    )
    plot_schedule(trained.model, trained.params, workdir)
    print(table([result.row()]))
    print(
        f"{result.dataset} {result.split}: at most {result.text()} bits/dim "
        f"({result.num_images} images, {result.num_draws} draws each)"
    )
    print(f"record  {path}\nplot    {picture}")


def sample(config: Config, workdir: Workdir, checkpoint: str | None, source: str | None) -> None:
    """--mode=sample: `samples_<N>x<H>x<W>x<C>.npz` and a grid as PNG."""
    mesh = sharding.make_mesh()
    trained = load_trained(config, workdir, checkpoint, mesh)
    sampling = Sampling(
        for_evaluation(trained.model),
        mesh,
        config.sample,
        batch_size=min(config.sample.batch_size, config.sample.num_images),
    )
    with Progress(config.sample.num_images, label="sample", unit="image") as progress:
        samples = sampling(
            trained.params,
            config.sample.num_images,
            root_key(config.seed, "sample"),
            num_steps=config.sample.steps,
            on_batch=progress.update,
        )
    if jax.process_index() == 0:
        path = workdir.samples / f"samples_{'x'.join(map(str, samples.shape))}.npz"
        picture = path.with_suffix(".png")
        image_lib.write_npz(path, samples)
        grid = image_lib.grid(samples[:256], num_levels=trained.model.num_levels)
        image_lib.write_png(picture, grid)
        print(f"samples {path}\ngrid    {picture}")


def import_(config: Config, workdir: Workdir, checkpoint: str | None, source: str | None) -> None:
    """--mode=import: a checkpoint of another codebase becomes one of jvdm."""
    if not source or source not in importers.IMPORTERS:
        raise unknown("--source", source, importers.IMPORTERS)
    if not checkpoint:
        raise UserError("--mode=import needs --checkpoint=PATH, the checkpoint to import")
    shape, num_levels = data.image_spec(config.data.source, num_levels=config.data.num_levels)
    model = model_lib.build(config, shape, num_levels)
    imported = importers.load(source, checkpoint, model)
    workdir.prepare()
    target = checkpoints.Checkpoints(workdir.checkpoints)
    if target.latest() is not None:
        raise UserError(f"--workdir={workdir.path} holds checkpoints already; give another")
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
    print(f"checkpoint {workdir.checkpoints / str(imported.step)}")


def load_trained(config: Config, workdir: Workdir, checkpoint: str | None, mesh: Mesh) -> Trained:
    """The averaged weights of a checkpoint, with the model of the config.

    Raises:
        UserError: no such checkpoint, a damaged one, or one of another model.
    """
    path = checkpoints.find(workdir.path, checkpoint)
    saved = Workdir(path.parent.parent)
    if saved.config.exists():
        config_lib.check_model(config_lib.read_json(saved.config), config, saved.path)
    workdir.prepare()
    shape, num_levels = data.image_spec(config.data.source, num_levels=config.data.num_levels)
    model = model_lib.build(config, shape, num_levels)
    shapes = {
        "step": jax.ShapeDtypeStruct((), np.int32),
        "ema_params": jax.eval_shape(model.init, jax.random.key(0)),
    }
    everywhere = sharding.replicated(mesh)
    state = checkpoints.restore(
        path, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), shapes)
    )
    log.info("weights of step %d from %s", int(state["step"]), path)
    return Trained(model, state["ema_params"], int(state["step"]), path)


MODES = {"train": train, "eval": evaluate, "sample": sample, "import": import_}
