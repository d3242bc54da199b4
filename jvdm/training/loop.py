"""The training loop: `train(config, workdir)` runs or resumes a run to its last step."""

import collections
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh

from jvdm import config as config_lib
from jvdm import data
from jvdm import model as model_lib
from jvdm.core import preemption, processes, sharding
from jvdm.core.errors import UserError
from jvdm.core.keys import root_key
from jvdm.core.progress import Progress
from jvdm.core.records import Batch, take
from jvdm.core.registry import Config
from jvdm.evaluation import passes, suite
from jvdm.evaluation.sampling import Sampling
from jvdm.evaluation.vlb import for_evaluation
from jvdm.reporting import images as image_lib
from jvdm.reporting import inspection, plots
from jvdm.reporting.writers import MetricWriter, NullWriter, read_metrics
from jvdm.runs import pending, saved
from jvdm.runs.checkpoints import Checkpoints, check_saves
from jvdm.runs.pending import Pending
from jvdm.runs.restoring import steps_in
from jvdm.runs.state import StepMetrics, TrainState
from jvdm.runs.workdir import Workdir
from jvdm.training.branch_from import branch_from
from jvdm.training.init_from import init_from
from jvdm.training.intervals import check_intervals, is_due
from jvdm.training.memory import compile_step
from jvdm.training.step import init_state

log = logging.getLogger("jvdm")

# What may be due after a step, in this order, so that a checkpoint is of a step whose other work is done.
_WORK = ("eval_every", "sample_every", "checkpoint_every")


class Trainer:
    """One run: its model, data, state and outputs.

    Args:
        config: the resolved config.
        workdir: of the run; one that is found there is resumed.
        mesh: the devices; by default all of them, split as `config.training.fsdp` says.

    Raises:
        UserError: config, data or workdir make the run impossible.
    """

    def __init__(self, config: Config, workdir: Workdir, mesh: Mesh | None = None):
        self.config, self.workdir = config, workdir
        if config.init_from and config.branch_from:
            raise UserError("config.init_from and config.branch_from are both given: give one of them")
        check_intervals(config)
        self.mesh = sharding.make_mesh(fsdp=config.training.fsdp) if mesh is None else mesh
        batch_size, microbatches = config.training.batch_size, config.training.microbatches
        sharding.check_batch("config.training.batch_size", batch_size, self.mesh, microbatches)
        workdir.prepare()
        # A run that has saved nothing is not resumed, but started again.
        if workdir.config.exists() and steps_in(workdir.checkpoints):
            config_lib.check_resume(saved.read_config(workdir.config), config, workdir.path)

        self.dataset = data.load(**config.data)
        self.model = model_lib.build(config, self.dataset.data_shape, self.dataset.num_levels)
        self.batches = data.TrainBatches(
            self.dataset.examples("train"),
            batch_size=batch_size,
            seed=config.seed,
            augmentation=data.AUGMENTATIONS.build(config.augmentation),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        num_test = config.training.eval_images or len(self.dataset.test)
        self.test_examples = take(self.dataset.examples("test"), slice(num_test))
        self.estimator = suite.during_training(config, self.model, self.mesh)
        self.sampling = None
        if config.training.sample_every:
            self.sampling = Sampling(
                for_evaluation(self.model),
                self.mesh,
                config.sample,
                batch_size=min(config.sample.batch_size, config.training.sample_images),
            )
        self._total = "bpd" if self.model.num_levels else "nats"
        self.eval_key, self.sample_key = root_key(config.seed, "eval"), root_key(config.seed, "sample")

        def initial_state(key):
            return init_state(self.model, config, key)

        key = root_key(config.seed, "training")
        shapes = jax.eval_shape(initial_state, key)
        where = sharding.of_state(shapes, self.mesh)
        init = jax.jit(initial_state, out_shardings=where)
        self.checkpoints = Checkpoints(workdir.checkpoints, keep=config.training.keep_checkpoints)
        shapes = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, where)
        newest = self.checkpoints.restore_newest(shapes)
        for name in ("init_from", "branch_from"):
            if newest is not None and config[name]:
                log.info("config.%s starts a new run; this one is resumed", name)
        self.state: TrainState
        undone = pending.NOTHING
        if newest is not None:
            self.state, self.step, undone = newest
        elif config.branch_from:
            self.state = branch_from(config.branch_from, self.model, config, self.mesh)
            self.step = int(self.state.step)
            if self.step >= config.training.num_steps:
                raise UserError(
                    f"config.training.num_steps is {config.training.num_steps}, and the run that this one "
                    f"branches from is at step {self.step} already: give more"
                )
        else:
            self.state, self.step = init(key), 0
            if config.init_from:
                self.state = init_from(config.init_from, self.state)
        # Metrics of the steps since the last line, and the work that a run that was stopped has left undone.
        self.window, self.todo = list(undone.window), tuple(undone.todo)
        if self.step % config.training.steps_per_dispatch:
            raise UserError(
                f"the run is at step {self.step}, not a multiple of config.training.steps_per_dispatch, "
                f"{config.training.steps_per_dispatch}: set it to 1"
            )
        self._check_data()
        workdir.save_config(config)

    def _check_data(self) -> None:
        """Refuse to continue on images other than those the run was started with."""
        now = {"name": self.dataset.name, "version": self.dataset.version}
        now |= {split: self.dataset.fingerprint(split) for split in ("train", "test")}
        resumed = self.step and self.workdir.data.exists()
        before = saved.read_data(self.workdir.data) if resumed else {}
        for split, did in (("train", "trained"), ("test", "evaluated")):
            if before.get(split, now[split]) != now[split]:
                raise UserError(
                    f"{self.workdir.path} was {did} on other {split} data ({_named(before)}, SHA-256 "
                    f"{before[split]}) than {_named(now)}, {now[split]}; use another --workdir, with "
                    "--config.branch_from to go on from this run"
                )
        spec = {"data_shape": self.dataset.data_shape, "num_levels": self.dataset.num_levels}
        self.workdir.save_data({**now, **spec})

    def run(self) -> None:
        """Train to `config.training.num_steps`.

        Raises:
            UserError: non-finite loss, or an output that cannot be written.
        """
        config = self.config.training
        if self.step >= config.num_steps and not self.todo:
            log.info("step %d of %d: there is nothing left to train", self.step, config.num_steps)
            self.checkpoints.close()
            return
        self._describe()
        check_saves(self.workdir.path, self.state)
        train_step: Any = self._compiled_step() if self.step < config.num_steps else None
        is_main = processes.is_main()
        redone = "test/" if "eval_every" in self.todo else None
        self.writer = (
            MetricWriter(self.workdir.path, resume_step=self.step, redone=redone) if is_main else NullWriter()
        )
        # Metrics of dispatches whose results have not been fetched: the host stays one ahead of the device.
        in_flight: collections.deque[tuple[int, StepMetrics]] = collections.deque()
        with (
            self.writer,
            Progress(config.num_steps, initial=self.step, label="train", shown=is_main) as progress,
        ):

            def fetch(leave: int) -> None:
                while len(in_flight) > leave:
                    step, metrics = in_flight.popleft()
                    self.window.append(self._check_finite(step, jax.device_get(metrics)))
                    name, values = next(iter(self.window[-1].losses.items()))
                    progress.update(step, **{name: float(values[-1])})

            if self.todo:
                self._finish(self.todo, fetch)
                self._save(None)
            while self.step < config.num_steps:
                batches = self._next_batches()
                self.state, metrics = train_step(self.state, batches)
                self.step += config.steps_per_dispatch
                in_flight.append((self.step, metrics))
                fetch(leave=1)
                if self._due("log_every"):
                    fetch(leave=0)
                    self._log(self.window)
                    self.window.clear()
                self._finish(tuple(name for name in _WORK if self._due(name)), fetch)
            fetch(leave=0)
            progress.update(self.step)
        self.checkpoints.wait()
        averages = sharding.gather(self.state.ema_params, self.mesh)
        if is_main:
            self._plot(averages)
            self._summarize()
        self.checkpoints.close()

    def _finish(self, due: tuple[str, ...], fetch: Callable[[int], None]) -> None:
        """Do what is due after a step; if a stop is requested, save, and leave the rest for the next start.

        Args:
            due: names of intervals.
            fetch: takes all but so many of the newest metrics from the device into `window`.

        Raises:
            Preempted: the process was asked to stop, and the state is saved.
        """
        bits_per_dim = None
        for done in range(len(due) + 1):
            try:
                if done == len(due) and self.step >= self.config.training.num_steps:
                    return
                preemption.check()
                if done == len(due):
                    return
                if due[done] == "eval_every":
                    bits_per_dim = self._evaluate()
                    if self.step in self.checkpoints.steps():  # saved when the run was asked to stop
                        self.checkpoints.amend(self.step, bits_per_dim=bits_per_dim)
                elif due[done] == "sample_every":
                    self._sample()
            except preemption.Preempted:
                fetch(0)
                self._save(
                    bits_per_dim, todo=tuple(name for name in due[done:] if name != "checkpoint_every")
                )
                self.checkpoints.close()
                log.info("stopped: step %d is saved; the same command goes on", self.step)
                raise
            if due[done] == "checkpoint_every":
                fetch(0)
                self._save(bits_per_dim)

    def _save(self, bits_per_dim: float | None, *, todo: tuple[str, ...] = ()) -> None:
        """Save the state with its pending work, or only the latter where the step already has a checkpoint.

        Metrics come first: what a checkpoint says is done must survive the machine.
        """
        self.writer.sync()
        undone = Pending(self.window, todo)
        if self.step in self.checkpoints.steps():
            self.checkpoints.amend(self.step, pending=undone)
        else:
            self.checkpoints.save(self.state, self.step, bits_per_dim, undone)

    def _due(self, interval: str) -> bool:
        return is_due(self.config.training, interval, self.step)

    def _next_batches(self) -> Batch:
        steps = range(self.step, self.step + self.config.training.steps_per_dispatch)
        stacked = jax.tree.map(lambda *parts: np.stack(parts), *(self.batches[step] for step in steps))
        return sharding.to_devices(stacked, sharding.split(self.mesh, axis=1))

    def _compiled_step(self) -> Any:
        return compile_step(
            self.model, self.config, self.mesh, self.state, self._next_batches(), resumed=self.step > 0
        )

    def _describe(self) -> None:
        overview = parameter_overview.get_parameter_overview(self.state.params, include_stats=False)
        log.info("parameters\n%s", overview)
        log.info(
            "%s: %d training and %d test examples of %s, %s",
            self.dataset.name,
            len(self.dataset.train),
            len(self.dataset.test),
            data.shape_text(self.dataset.data_shape),
            f"{self.dataset.num_levels} levels" if self.dataset.num_levels else "continuous",
        )
        log.info("%d device(s): %s", jax.device_count(), jax.devices()[0].device_kind)
        if self.step:
            log.info("resuming at step %d", self.step)

    def _check_finite(self, last: int, metrics: StepMetrics) -> StepMetrics:
        """The metrics of the steps up to `last`.

        Raises:
            UserError: a loss or a gradient among them is not finite.
        """
        name, loss = next(iter(metrics.losses.items()))
        good = np.isfinite(loss) & np.isfinite(metrics.grad_norm)
        if good.all():
            return metrics
        step = last - len(good) + int(np.argmin(good)) + 1
        i = int(np.argmin(good))
        self.checkpoints.wait()
        raise UserError(
            f"step {step}: loss {loss[i]} ({name}), gradient norm {metrics.grad_norm[i]}: not finite; "
            f"{self._remedy()}"
        )

    def _remedy(self) -> str:
        """How a run goes on after a loss that was not finite."""
        optimizer, kept = self.config.optimizer, self.checkpoints.latest()
        changed = f"--config.optimizer.learning_rate={0.5 * optimizer.learning_rate:g}"
        if not optimizer.clip_norm:
            changed += " or --config.optimizer.clip_norm=1.0"
        if kept is None:
            return f"nothing was saved yet; start again with {changed}"
        branch = f"--config.branch_from={self.workdir.checkpoints / str(kept)}"
        return (
            f"the checkpoint of step {kept} is kept; go on from it in another --workdir, with {branch} and "
            f"{changed}"
        )

    def _log(self, window: list[StepMetrics]) -> None:
        """Write a line of metrics: means over the window, and the last gamma and learning rate."""
        flat = [{**m.losses, "grad_norm": m.grad_norm} for m in window]
        values = {
            f"train/{name}": float(np.concatenate([each[name] for each in flat]).mean(dtype=np.float64))
            for name in flat[0]
        }
        for name in ("learning_rate", "gamma_0", "gamma_1"):
            if (last := getattr(window[-1], name)) is not None:
                values[f"train/{name}"] = float(last[-1])
        if processes.is_main() and not self.workdir.config.is_file():
            raise UserError(
                f"{self.workdir.path} was removed before step {self.step}: there is nowhere to save"
            )
        self.writer.scalars(self.step, values)

    def _evaluate(self) -> float:
        """The bound of the averaged weights on (the first images of) the test split, in the model's units."""
        averages = sharding.gather(self.state.ema_params, self.mesh)
        rows = passes.run(self.estimator, averages, self.test_examples, self.eval_key)
        means = {name: float(rows[name].mean(dtype=np.float64)) for name in self.estimator.terms}
        total = math.fsum(means.values())
        terms = {f"test/{name}": mean for name, mean in means.items()}
        self.writer.scalars(self.step, {f"test/{self._total}": total, **terms})
        return total

    def _sample(self) -> None:
        training = self.config.training
        averages = sharding.gather(self.state.ema_params, self.mesh)
        assert self.sampling is not None  # it is, where samples are due
        samples = self.sampling(
            averages, training.sample_images, self.sample_key, num_steps=training.sample_steps
        )
        if processes.is_main():
            picture = image_lib.picture(samples.images, self.dataset.num_levels)
            if picture is not None:
                image_lib.write_png(self.workdir.samples / f"step_{self.step:08d}.png", picture)
                self.writer.image(self.step, "samples", picture)

    def _summarize(self) -> None:
        """Say what the run has come to, where it is, and what may come next."""
        tested = [line for line in read_metrics(self.workdir.metrics) if f"test/{self._total}" in line]
        if tested:
            last, num_images = tested[-1], len(self.test_examples.x)
            text = f"{last[f'test/{self._total}']:.4f} {self.model.units} at step {last['step']}"
            best = self.checkpoints.best()
            if best is not None and best[0] != last["step"]:
                text += f", lowest {best[1]:.4f} at step {best[0]}, which is kept"
            log.info("test split, %d examples, %s", num_images, text)
        log.info("checkpoints %s", self.workdir.checkpoints)
        log.info("metrics     %s", self.workdir.metrics)

    def _plot(self, averages: Any) -> None:
        plots.training_curves(read_metrics(self.workdir.metrics), self.workdir.plots / "training.png")
        inspection.plot_schedule(self.model, averages, self.test_examples, self.workdir)


def _named(recorded: dict[str, Any]) -> str:
    """The name of recorded data, and its version where it has one."""
    version = recorded.get("version", "-")
    return str(recorded.get("name")) + (f", {version}" if version != "-" else "")


def train(config: Config, workdir: Workdir) -> None:
    """Run or resume training."""
    workdir.prepare()
    with workdir.exclusive():
        trainer = Trainer(config, workdir)
        with preemption.working():
            trainer.run()
