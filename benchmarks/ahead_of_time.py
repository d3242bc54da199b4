"""Compiles a config's programs for accelerators that this machine does not have.

    python benchmarks/ahead_of_time.py --target=h100 --config=configs/vdm_cifar10.py
    python benchmarks/ahead_of_time.py --target=v5e:2x4 --config=cifar10 --programs=train
    python benchmarks/ahead_of_time.py --target=h100 --config=cifar10 --config.network.remat=full

The programs are the training step, the ODE likelihood and the sampler; `--batch=N` replaces the batch size of
all three. Targets are those of `chips.py`; a TPU's has a topology after a colon. Each program's lines say:

    memory        state, then temporary memory, of one device, as XLA has planned it, beside what the chip has
    convolutions  how many run, and their FLOPs; products, those of all matrix products
    bytes         read and written by all instructions, as if nothing stayed in a cache
    floor         of the time: FLOPs over the chip's peak, bytes over its bandwidth; the larger of the two is
                  the least that the program can take
    collectives   how many of each kind, with their bytes
    copies        instructions that only change an array's layout, with their bytes
    largest       the largest arrays

All figures are of one run of the program: a training step, a batch of images. A loop whose rounds XLA does
not know, such as the steps of an adaptive solver, counts as one round, and a note says so.

XLA needs `jax[cuda13]` or `libtpu` (about 3 GB) and Python 3.12 or later. If they are missing, the script
creates the virtual environment build/ahead_of_time and restarts in it. It neither looks for an accelerator
nor uses one.
"""

import collections
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

from chips import CHIPS, Chip
from script import Parser, names, run, whole

from jvdm.core.errors import UserError, one_line, unknown

ENVIRONMENT = ROOT / "build" / "ahead_of_time"
PLUGINS = {"cuda": ("jax_cuda13_plugin", "jax[cuda13]"), "tpu": ("libtpu", "libtpu")}
PYTHONS = ("python3.13", "python3.12", "python3.14")
PROGRAMS = ("train", "ode", "sample")


def chip_of(target: str) -> Chip:
    """The chip of --target.

    Raises:
        UserError: the chip is unknown, or the topology is missing or not its platform's.
    """
    name, colon, topology = target.partition(":")
    if name not in CHIPS:
        raise unknown("--target", name, CHIPS)
    if CHIPS[name].platform == "cuda" and colon:
        raise UserError(f"--target={target}: one GPU is compiled for; write --target={name}")
    if CHIPS[name].platform == "tpu" and not topology:
        raise UserError(f"--target={target}: give a topology, such as --target={name}:2x4")
    return CHIPS[name]


def in_environment(platform: str) -> None:
    """Start again in an environment that has the platform's compiler, unless this one does.

    Raises:
        UserError: there is no Python for it, or its packages cannot be installed.
    """
    module, package = PLUGINS[platform]
    if importlib.util.find_spec(module):
        return
    python = ENVIRONMENT / "bin" / "python"
    if pathlib.Path(sys.prefix).resolve() == ENVIRONMENT.resolve():
        _install(package)
    else:
        if not python.exists():
            command = [_python_that_fits(), "-m", "venv", str(ENVIRONMENT)]
            if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
                raise UserError(f"cannot create the virtual environment {ENVIRONMENT}")
        os.execv(python, [str(python), *sys.argv])


def _python_that_fits() -> str:
    here = [sys.executable] if sys.version_info >= (3, 12) else []
    pyenv = sorted(pathlib.Path.home().glob(".pyenv/versions/3.1[234]*/bin/python"), reverse=True)
    for python in (*here, *filter(None, map(shutil.which, PYTHONS)), *map(str, pyenv)):
        # A shim of a version manager may be there without its Python.
        if subprocess.run([python, "--version"], capture_output=True, check=False).returncode == 0:
            return python
    raise UserError("compiling ahead of time needs Python 3.12 or later; install one, for example python3.12")


def _install(package: str) -> None:
    print(f"installing {package} into {ENVIRONMENT} (once; up to 3 GB)", file=sys.stderr, flush=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "-r",
        str(ROOT / "requirements.txt"),
        package,
    ]
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
        raise UserError(f"cannot install {package} into {ENVIRONMENT}; with a network, try again")
    os.execv(sys.executable, [sys.executable, *sys.argv])


class Compiled(NamedTuple):
    """A program.

    Attributes:
        flops: by kind of operation, of one run.
        executable: as `jax.stages.Compiled`.
        seconds: that it took to compile.
    """

    flops: collections.Counter
    executable: Any
    seconds: float


def compiled(function: Any, *arguments: Any) -> Compiled:
    """Of a jitted function, for the devices that the arguments' shardings name."""
    from flops import flops_of

    traced = function.trace(*arguments)
    lowered = traced.lower()
    start = time.perf_counter()
    executable = lowered.compile()
    return Compiled(flops_of(traced.jaxpr.jaxpr), executable, time.perf_counter() - start)


def on(mesh: Any, tree: Any, axis: int | None = None) -> Any:
    """Shapes with shardings: replicated, or split along an axis."""
    import jax

    from jvdm.core import sharding

    where = sharding.replicated(mesh) if axis is None else sharding.split(mesh, axis=axis)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree)


def train(config: Any, model: Any, mesh: Any) -> Compiled:
    """One training step."""
    import jax

    from jvdm.core import sharding
    from jvdm.core.records import Batch
    from jvdm.training.step import init_state, make_train_step

    shapes = jax.eval_shape(lambda key: init_state(model, config, key), jax.random.key(0))
    state = jax.tree.map(
        lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where),
        shapes,
        sharding.of_state(shapes, mesh),
    )
    images = _images(model, (1, config.training.batch_size))
    return compiled(make_train_step(model, config, mesh), state, on(mesh, Batch(images), axis=1))


def ode(config: Any, model: Any, mesh: Any) -> Compiled:
    """The ODE likelihood of one batch."""
    import jax
    import jax.numpy as jnp

    from jvdm.core.precision import full_precision
    from jvdm.core.records import Batch
    from jvdm.evaluation.ode import ODE

    estimator = ODE.from_config(config, model, mesh)
    n = config.eval.ode.batch_size
    params = jax.eval_shape(estimator.model.init, jax.random.key(0))
    batch = on(mesh, Batch(_images(model, (n,))), axis=0)
    index = on(mesh, jax.ShapeDtypeStruct((n,), jnp.int32), axis=0)
    with full_precision():
        return compiled(estimator._sample, on(mesh, params), on(mesh, _key()), batch, index, 0, 0)


def sample(config: Any, model: Any, mesh: Any) -> Compiled:
    """One batch of samples, with as many steps as the config says."""
    import jax
    import jax.numpy as jnp

    from jvdm.core.precision import full_precision
    from jvdm.evaluation.sampling import Sampling
    from jvdm.evaluation.vlb import for_evaluation

    model = for_evaluation(model)
    n = config.sample.batch_size
    sampling = Sampling(model, mesh, config.sample, batch_size=n)
    params = jax.eval_shape(model.init, jax.random.key(0))
    index = on(mesh, jax.ShapeDtypeStruct((n,), jnp.int32), axis=0)
    with full_precision():
        return compiled(sampling._sample, on(mesh, params), on(mesh, _key()), index, config.sample.steps)


def _images(model: Any, leading: tuple[int, ...]) -> Any:
    import jax
    import numpy as np

    kind = np.uint8 if model.num_levels else np.float32
    return jax.ShapeDtypeStruct((*leading, *model.data_shape), kind)


def _key() -> Any:
    import jax

    return jax.eval_shape(lambda: jax.random.key(0))


def lines(name: str, program: Compiled, chip: Chip, precision: str, count: int) -> Iterator[str]:
    """What is printed of a program.

    Args:
        name: of the program.
        program: compiled for `count` chips.
        chip: each of them.
        precision: a key of its peaks.
        count: of devices.
    """
    import hlo

    memory = program.executable.memory_analysis()
    state, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    need = state + temporary
    fits = "fits" if need <= chip.memory else "DOES NOT FIT"
    yield f"{name} (compiled in {program.seconds:.0f} s)"
    yield (
        f"  memory        {state / 1e9:.2f} GB state and batch + {temporary / 1e9:.2f} GB temporary "
        f"a device: {fits} {chip.memory / 1e9:.0f} GB"
    )
    text = hlo.Program(program.executable.as_text())
    peak = chip.peak[precision]
    # The jaxpr is of all devices, the compiled text of one.
    flops = {kind: total / count for kind, total in program.flops.items()}
    runs = ", ".join(f"{cost.count} {kind}" for kind, cost in sorted(text.convolutions().items()))
    yield f"  convolutions  {_flop(flops.get('convolutions', 0))} ({runs or 'none in the program'})"
    yield f"  products      {_flop(flops.get('products', 0))}"
    moved = text.bytes_moved()
    yield f"  bytes         {moved / 1e9:.1f} GB"
    yield (
        f"  floor         {1e3 * sum(flops.values()) / peak:.3g} ms at the peak of {peak / 1e12:.0f} TFLOP/s "
        f"({precision}), {1e3 * moved / chip.bandwidth:.3g} ms at {chip.bandwidth / 1e12:.2f} TB/s"
    )
    collectives = ", ".join(
        f"{cost.count} {kind} of {_size(cost.bytes)} in all"
        for kind, cost in sorted(text.collectives().items())
    )
    yield f"  collectives   {collectives or 'none'}"
    copies = text.copies()
    largest = f"the largest {_size(copies.largest)}"
    yield f"  copies        {copies.count} of {_size(copies.bytes)} in all, {largest}"
    for i, (size, shape, source) in enumerate(text.largest(5)):
        yield f"  {'largest' if not i else '':13} {_size(size):>8}  {shape}  {source[-60:]}"
    if text.open_loops:
        yield f"  note          {text.open_loops} loop(s) of unknown length count as one round"


def _flop(count: float) -> str:
    return f"{count / 1e12:.2f} TFLOP" if count >= 1e11 else f"{count / 1e9:.2f} GFLOP"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def devices_of(chip: Chip, target: str) -> list[Any]:
    """Devices that are not there.

    Raises:
        UserError: the compiler does not know the target.
    """
    from jax.experimental import topologies

    if chip.platform == "cuda":
        options = {"target_config": chip.description, "topology": "1x1x1"}
    else:
        options = {"topology_name": target}
    try:
        return list(topologies.get_topology_desc(platform=chip.platform, **options).devices)
    # A plugin raises what it likes: JaxRuntimeError, ValueError or NotImplementedError, by version.
    except Exception as error:
        raise UserError(f"--target={target}: {one_line(error, limit=300)}") from error


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--target", required=True, help=f"{', '.join(CHIPS)}; TPUs with a topology, v5e:2x4")
    parser.add_argument("--config", required=True, help="as for main.py; so are --config.FIELD=VALUE")
    parser.add_argument("--programs", default=",".join(PROGRAMS), help="default %(default)s")
    parser.add_argument("--batch", type=whole, help="in place of the batch size of all programs")
    args, overrides = parser.parse_known_args()
    chip = chip_of(args.target)
    programs = names("--programs", args.programs, PROGRAMS)
    # Otherwise the plugins look for a driver, and libtpu for a metadata server.
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TF_CPP_MIN_LOG_LEVEL="3")

    from absl import flags

    from jvdm.cli import command_line

    # Before anything is installed, which takes minutes.
    values = flags.FlagValues()
    command_line.define_flags(values)
    command_line.read(["jvdm", "train", f"--config={args.config}", *overrides], values)
    config = values.config.unlock()
    in_environment(chip.platform)

    import jax

    from jvdm import data
    from jvdm import model as model_lib
    from jvdm.core import sharding

    sections = {"train": config.training, "ode": config.eval.ode, "sample": config.sample}
    if args.batch:
        for section in sections.values():
            section.batch_size = args.batch
    devices = devices_of(chip, args.target)
    mesh = sharding.make_mesh(devices, fsdp=config.training.fsdp)
    for name, field in zip(PROGRAMS, ("training", "eval.ode", "sample"), strict=True):
        if name in programs:
            microbatches = config.training.microbatches if name == "train" else 1
            sharding.check_batch(f"config.{field}.batch_size", sections[name].batch_size, mesh, microbatches)
    model = model_lib.build(config, *data.data_spec(config.data.source, num_levels=config.data.num_levels))
    dtype = config.network.get("dtype", "float32")
    print(f"$ python benchmarks/ahead_of_time.py {' '.join(sys.argv[1:])}")
    print(
        f"jax {jax.__version__}; {len(devices)} x {chip.name}; batch {config.training.batch_size}, "
        f"{dtype}, remat {config.network.get('remat', '-')}, fsdp {config.training.fsdp}, "
        f"microbatches {config.training.microbatches}"
    )
    build: dict[str, Callable] = {"train": train, "ode": ode, "sample": sample}
    for name in programs:
        # Evaluation is in full float32 whatever the trunk is trained in.
        used = dtype if name == "train" else "highest"
        for line in lines(name, build[name](config, model, mesh), chip, used, len(devices)):
            print(line, flush=True)


if __name__ == "__main__":
    run(main)
