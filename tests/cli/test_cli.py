"""The command as a user runs it: the whole way, and every mistake in one line."""

import csv
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags
from helpers import forked, quick
from helpers.commands import DIGITS, LIGHT, ROOT, VLB

from jvdm.cli import command_line, commands, config_file
from jvdm.cli import main as main_lib
from jvdm.core.errors import UserError
from jvdm.reporting import images as image_lib


def run_alone(*command, **environment):
    """A process of its own, not forked, on one device."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=quick.environment(**environment),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir after --mode=train, and what that printed."""
    workdir = tmp_path_factory.mktemp("cli") / "run"
    done = run_alone(sys.executable, "main.py", "--mode=train", DIGITS, f"--workdir={workdir}", *LIGHT)
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_train(trained):
    workdir, done = trained
    next_command = f"next    python main.py --mode=eval --workdir={workdir}"
    assert done.stdout.splitlines() == [*[f"workdir {workdir}"] * 2, next_command]
    assert "test split, " in done.stderr
    assert "step needs" in done.stderr
    assert "parameters" in done.stderr
    assert "2/2 step" in done.stderr
    assert (workdir / "checkpoints" / "2").is_dir()


def test_eval(trained):
    workdir, _ = trained
    done = forked.run("--mode=eval", DIGITS, f"--workdir={workdir}", *LIGHT)
    assert done.returncode == 0, done.stderr
    (vlb,) = (workdir / "eval").glob("vlb_continuous_step2_10x2_seed0_*.json")
    record = json.loads(vlb.read_text())
    origin = record["provenance"]
    assert (record["num_images"], record["num_draws"], origin["weights"]) == (10, 2, "ema")
    assert origin["split"] == "test[:10]"
    assert f"{record['value']:.4f} ± " in done.stdout
    (ode,) = (workdir / "eval").glob("ode_*.json")
    record = json.loads(ode.read_text())
    assert ode.stem.rpartition("_")[0] == "ode_truncated_normal_K1_dopri5_1e-05_step2_10x1_seed0"
    assert (record["estimator"], record["num_images"], record["is_bound"]) == ("ode", 10, True)
    assert record["ode"]["solver_error"]["num_images"] == 2
    assert f"{record['value']:.4f} ± " in done.stdout
    assert not list((workdir / "eval").glob("*.partial")), "finished passes leave nothing"
    assert (workdir / "plots" / f"loss_against_gamma_{vlb.stem}.png").stat().st_size > 0
    again = forked.run(
        "--mode=eval", DIGITS, f"--workdir={workdir}", "--config.eval.timesteps=5", VLB, *LIGHT
    )
    assert again.returncode == 0, again.stderr
    (discrete,) = (workdir / "eval").glob("vlb_T5_step2_10x2_seed0_*.json")
    assert json.loads(discrete.read_text())["timesteps"] == 5


def test_score(trained, tmp_path):
    """A folder of images without splits, and the test split: one line per image, by name and by position."""
    workdir, _ = trained
    rng = np.random.default_rng(0)
    for name in ("b.png", "a, 1.png", "c.png"):
        image_lib.write_png(tmp_path / "set" / name, rng.integers(0, 17, (8, 8), dtype=np.uint8))
    source = f"--config.score.source=folder:{tmp_path / 'set'}"
    done = forked.run("--mode=score", DIGITS, f"--workdir={workdir}", source, *LIGHT)
    assert done.returncode == 0, done.stderr
    tables = {path.stem.split("_")[4]: path for path in (workdir / "scores").glob("*.csv")}
    assert tables.keys() == {"vlb", "ode"}
    for estimator, path in tables.items():
        with path.open() as file:
            rows = list(csv.DictReader(file))
        assert [row["image"] for row in rows] == ["a, 1.png", "b.png", "c.png"]
        no_terms = {"image", "bits_per_dim", "monte_carlo_error", "nfe"}
        terms = [name for name in rows[0] if name not in no_terms]
        for row in rows:
            # Six decimals each.
            assert abs(sum(float(row[name]) for name in terms) - float(row["bits_per_dim"])) < 1e-5
        assert ("monte_carlo_error" in rows[0]) == (estimator == "vlb"), "two draws there, one here"
        assert path.with_suffix(".json").is_file()


def test_sample(trained):
    workdir, _ = trained
    path = workdir / "checkpoints" / "2"
    done = forked.run("--mode=sample", DIGITS, f"--workdir={workdir}", f"--checkpoint={path}", *LIGHT)
    assert done.returncode == 0, done.stderr
    (path,) = (workdir / "samples").glob("samples_3x8x8x1_step2_seed0_*.npz")
    with np.load(path) as saved:
        assert saved.files == ["arr_0"]
        assert (saved["arr_0"].shape, saved["arr_0"].dtype) == ((3, 8, 8, 1), np.uint8)
    assert path.with_suffix(".png").stat().st_size > 0


def test_report(trained):
    """What `make demo` ends with: records and the paths of outputs. After the tests of eval and sample."""
    done = forked.run("--mode=report", f"--workdir={trained[0]}")
    assert done.returncode == 0, done.stderr
    for path in [*(trained[0] / "eval").glob("*.json"), *(trained[0] / "samples").glob("samples_*")]:
        assert str(path) in done.stdout
        assert path.suffix != ".json" or f"{json.loads(path.read_text())['value']:.4f}" in done.stdout
    assert f"checkpoint {trained[0] / 'checkpoints' / '2'}" in done.stdout


def test_help():
    done = run_alone(sys.executable, "main.py", "--help")
    assert done.returncode == 0
    for text in ("jvdm train ", "python main.py --mode=train", "--workdir ", "swissroll", "npz:FILE"):
        assert text in done.stdout, text
    assert max(map(len, done.stdout.splitlines())) <= 120


def read(*arguments):
    """The flags of a command, and the value of --config, in this process."""
    values = flags.FlagValues()
    command_line.define_flags(values)
    command_line.read(["jvdm", *arguments], values)
    return values, config_file.argument(arguments)[0]


def test_every_mode_of_the_command_line_exists():
    assert set(command_line.MODES) == set(commands.MODES)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", DIGITS, "--workdir=x"],
        ["--workdir=x", DIGITS, "train"],
        ["--mode=train", "--config=digits", "--workdir=x"],
        ["train", "--config", "digits", "--workdir", "x"],
    ],
)
def test_ways_to_write_a_command(arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    values, _ = read(*arguments, "--config.training.batch_size=48")
    assert (values.mode, values.workdir, values.config.data.source) == ("train", "x", "digits")
    assert values.config.training.batch_size == 48


def test_configs_by_name(monkeypatch, tmp_path):
    """From any folder; a file of that name comes first, and the argument follows the name."""
    monkeypatch.chdir(tmp_path)
    assert set(config_file.packaged()) == {path.stem for path in (ROOT / "configs").glob("*.py")}
    for name, path in config_file.packaged().items():
        assert config_file.find(name).samefile(ROOT / "configs" / f"{name}.py")
        assert path.is_file()
    assert config_file.load("vdm_imagenet32:new").data.source == "imagenet32_new"
    (tmp_path / "digits").write_text((ROOT / "configs" / "swissroll.py").read_text())
    assert config_file.load("digits").data.source == "swissroll"


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


GOOD = np.zeros((4, 8, 8, 1), np.uint8)


def bad_files(folder):
    """Files with one mistake each."""
    (folder / "broken.py").write_text("def get_config(:\n")
    (folder / "raises.py").write_text("def get_config():\n    return 1 / 0\n")
    (folder / "none.py").write_text("def get_config():\n    return None\n")
    (folder / "truncated.npz").write_bytes(npz(folder / "a.npz", train_images=GOOD).read_bytes()[:100])
    npz(folder / "missing.npz", train_images=GOOD)
    npz(folder / "floats.npz", train_images=GOOD + np.float32(0.5), test_images=GOOD)
    npz(folder / "flat.npz", train_images=GOOD[..., 0], test_images=GOOD)
    npz(folder / "wide.npz", images=np.zeros((2, 8, 9, 1), np.uint8))
    npz(folder / "levels.npz", train_images=GOOD + 20, test_images=GOOD)
    (folder / "file").write_text("")
    (folder / "surplus.py").write_text(
        "from jvdm import config\n\ndef get_config():\n    c = config.default()\n"
        "    with c.unlocked():\n        c.training.batchsize = 3\n    return c\n"
    )
    (folder / "option.py").write_text(
        "from jvdm import config\nfrom jvdm.networks import NETWORKS\n\ndef get_config():\n"
        "    c = config.default()\n    c.network = NETWORKS.spec('vdm_unet', channels='many')\n    return c\n"
    )
    (folder / "broken.flax").write_bytes(b"\x85\xa4step")
    (folder / "importable.py").write_text(
        "from jvdm import config\n\ndef get_config():\n    c = config.default()\n"
        "    c.network.num_groups = 32\n    return c\n"
    )


IMPORTABLE = "--config={tmp}/importable.py"
TRAIN = ("--mode=train", DIGITS)
MISTAKES = {
    "unknown mode": (["--mode=trian", DIGITS], "unknown mode 'trian'; did you mean 'train'"),
    "unknown mode as a word": (["trian", DIGITS], "unknown mode 'trian'; did you mean 'train'"),
    "two modes": (["--mode=train", "eval", DIGITS], "unexpected argument 'eval'"),
    "no mode": ([DIGITS], "the mode is missing"),
    "no config": (["--mode=train"], "--config is missing"),
    "no run to report on": (["report"], "--workdir is missing"),
    "missing config": (["--mode=train", "--config=configs/nope.py"], "configs/nope.py: no such file"),
    "misspelt config": (["--mode=train", "--config=configs/digit.py"], "did you mean --config=digits?"),
    "unknown name of a config": (["train", "--config=swisroll:debiased"], "did you mean 'swissroll'"),
    "broken config": (["--mode=train", "--config={tmp}/broken.py"], "SyntaxError"),
    "raising config": (["--mode=train", "--config={tmp}/raises.py"], "ZeroDivisionError"),
    "empty config": (["--mode=train", "--config={tmp}/none.py"], "returned None"),
    "argument of config": (
        ["--mode=train", "--config=configs/vdm_imagenet32.py:newer"],
        "did you mean 'new'",
    ),
    "unknown flag": ([*TRAIN, "--wrkdir=x"], "wrkdir"),
    "stray argument": (["--mode=train", "configs/digits.py"], "did you mean --config=configs/digits.py?"),
    "component by its name": (
        ["--mode=train", DIGITS, "--config.eval.ode.solver=fixd"],
        "did you mean 'fixed'",
    ),
    "config is a folder": (["--mode=train", "--config=configs"], "--config=configs: a folder; give a file"),
    "unknown override": (
        [*TRAIN, "--config.training.batchsize=3"],
        "config.training.batchsize; did you mean config.training.batch_size? (config.training has:",
    ),
    "override without its section": (
        [*TRAIN, "--config.checkpoint_every=3"],
        "unknown field config.checkpoint_every; did you mean config.training.checkpoint_every? (config has:",
    ),
    "override of an unknown section": (
        [*TRAIN, "--config.trainin.microbatches=3"],
        "did you mean config.training.microbatches? (config has: augmentation, branch_from, data,",
    ),
    "override of a field of a field": (
        [*TRAIN, "--config.seed.x=3"],
        "unknown field config.seed.x; did you mean config.seed?",
    ),
    "override of a section": (
        [*TRAIN, "--config.score=3"],
        "is a section: give one of its fields (--config.score.num_images, --config.score.source,",
    ),
    "override that is no integer": (
        [*TRAIN, "--config.training.batch_size=many"],
        "config.training.batch_size is 'many', not an int",
    ),
    "override that is no whole number": ([*TRAIN, "--config.seed=1.5"], "config.seed is '1.5', not an int"),
    "override that is no number": (
        [*TRAIN, "--config.optimizer.clip_norm=x"],
        "config.optimizer.clip_norm is 'x', not a float",
    ),
    "override that is no boolean": (
        [*TRAIN, "--config.network.fourier=maybe"],
        "config.network.fourier is 'maybe', not a bool",
    ),
    "override in two words": ([*TRAIN, "--config.seed", "x"], "config.seed is 'x', not an int"),
    "component in two words": (
        [*TRAIN, "--config.network.name", "mlp", "--config.network.channels=8"],
        "unknown field config.network.channels",
    ),
    "negated override": ([*TRAIN, "--noconfig.network.fourrier"], "did you mean config.network.fourier?"),
    "remat": ([*TRAIN, "--config.network.remat=True"], "choices: elementwise, full, none"),
    "override that is no Python": ([*TRAIN, "--config.network['x']=3"], "unknown field config.network['x']"),
    "import without a source": (
        ["--mode=import", IMPORTABLE, "--checkpoint={tmp}/broken.flax"],
        "--mode=import needs --source=NAME, the codebase that wrote it (addtt, idode, mulan, sdeflow, vdm)",
    ),
    "option that another component has": (
        [*TRAIN, "--config.schedule.name=fixed_linear", "--config.schedule.hidden=5"],
        "unknown field config.schedule.hidden",
    ),
    "value of an option of a chosen component": (
        [*TRAIN, "--config.data_map.a=0.7", "--config.data_map.name=logit"],
        "a is 0.7",
    ),
    "unknown component": ([*TRAIN, "--config.schedule.name=learned_scaler"], "did you mean 'learned_scalar'"),
    "option of another component": ([*TRAIN, "--config.network.name=vdm_net"], "did you mean 'vdm_unet'"),
    "unknown mask": ([*TRAIN, "--config.optimizer.decay_mask=x"], "decay_mask"),
    "unknown objective": ([*TRAIN, "--config.training.schedule_objective=x"], "bound, variance"),
    "ends of gamma": ([*TRAIN, "--config.schedule.gamma_min=6."], "not below gamma_max"),
    "batch": ([*TRAIN, "--config.training.batch_size=9", "--config.training.microbatches=2"], "try 8 or 10"),
    "interval": ([*TRAIN, "--config.training.log_every=7"], "log_every is 7"),
    "missing data": ([*TRAIN, "--config.data.source=npz:{tmp}/nope.npz"], "nope.npz"),
    "unknown data": ([*TRAIN, "--config.data.source=cifar11"], "did you mean 'cifar10'"),
    "truncated data": ([*TRAIN, "--config.data.source=npz:{tmp}/truncated.npz"], "truncated.npz"),
    "missing array": (
        [*TRAIN, "--config.data.source=npz:{tmp}/missing.npz"],
        "test_fraction=0.1 of 4 images",
    ),
    "dtype": ([*TRAIN, "--config.data.source=npz:{tmp}/floats.npz"], "uint8"),
    "shape": ([*TRAIN, "--config.data.source=npz:{tmp}/flat.npz"], "[N, H, W, C]"),
    "too many levels": (
        [*TRAIN, "--config.data.source=npz:{tmp}/levels.npz", "--config.data.num_levels=17"],
        "17",
    ),
    "import of a broken file": (
        ["--mode=import", IMPORTABLE, "--source=vdm", "--checkpoint={tmp}/broken.flax"],
        "broken.flax",
    ),
    "folder": ([*TRAIN, "--config.data.source=folder:{tmp}/file"], "file"),
    "workdir": ([*TRAIN, "--workdir={tmp}/file/run"], "cannot be written"),
    "checkpoint to train": ([*TRAIN, "--checkpoint=x"], "train does not take it"),
    "source to train": ([*TRAIN, "--source=vdm"], "--source is for the mode import"),
    "no checkpoint": (["--mode=eval", DIGITS, "--workdir={tmp}/empty"], "{tmp}/empty: no checkpoint; give"),
    "wrong checkpoint": (
        ["--mode=sample", DIGITS, "--checkpoint={tmp}/nope"],
        "{tmp}/nope: no checkpoint; give",
    ),
    "source": (["--mode=import", DIGITS, "--source=vdn"], "did you mean 'vdm'"),
    "import of nothing": (["--mode=import", DIGITS, "--source=vdm"], "needs --checkpoint"),
    "import of a file that is none": (
        [
            "--mode=import",
            DIGITS,
            "--source=vdm",
            "--checkpoint={tmp}/file",
            "--config.network.num_groups=32",
        ],
        "",
    ),
    "draws": ([*TRAIN, "--config.training.eval_draws=0"], "eval_draws is 0: give 1 or more"),
    "seed": ([*TRAIN, "--config.seed=-1"], "seed is -1: give a number from 0 to"),
    "images": (["--mode=eval", DIGITS, "--config.eval.num_images=-1"], "num_images is -1"),
    "clipping": ([*TRAIN, "--config.optimizer.clip_norm=-1."], "clip_norm is -1.0"),
    "groups": ([*TRAIN, "--config.network.num_groups=5"], "does not divide"),
    "estimator": (["--mode=eval", DIGITS, "--config.eval.estimators=vlb,odd"], "did you mean 'ode'"),
    "importance time": (
        [*TRAIN, "--config.time_density.name=importance"],
        "a fixed schedule that is linear in t (fixed_linear), not learned_scalar",
    ),
    "second order": ([*TRAIN, "--config.training.second_order=0.1"], "continuous time and a fixed schedule"),
    "start of a run": (
        [*TRAIN, "--config.init_from={tmp}/nope"],
        "init_from={tmp}/nope: no checkpoint",
    ),
    "decoder": ([*TRAIN, "--config.model.decoder=exakt"], "did you mean 'exact'"),
    "surplus field": (["--mode=train", "--config={tmp}/surplus.py"], "did you mean 'batch_size'"),
    "type of an option": (
        ["--mode=train", "--config={tmp}/option.py"],
        "channels is 'many', not an int",
    ),
}


# With the weights of a run.
MISTAKES_AFTER_TRAINING = {
    "tolerance": (["--mode=eval", "--config.eval.ode.solver.tolerance=0."], "tolerance is 0.0"),
    "samples without probes": (["--mode=eval", "--config.eval.ode.importance_samples=2"], "probes=2 or more"),
    "solver": (["--mode=eval", "--config.eval.ode.solver.method=dopri"], "choices: dopri5, dopri8, tsit5"),
    "steps": (
        ["--mode=eval", "--config.eval.ode.solver.max_steps=2", "--config.eval.estimators=ode"],
        "for 8 image(s): 0, 1",
    ),
    "density of samples": (["--mode=sample", "--config.sample.log_likelihood=True"], "sampler.name=ode"),
    "nothing to score": (["--mode=score", "--config.score.source=npz:{tmp}/nope.npz"], "no file"),
    "images to score": (["--mode=score", "--config.score.source=npz:{tmp}/wide.npz"], "are 8x9x1"),
    "split to score": (["--mode=score", "--config.score.split=tset"], "did you mean 'test'"),
}


# One of each way to end: a flag that absl refuses, two overrides, the user's Python, the check of a config,
# and errors before and after devices are used.
END_TO_END = (
    *("unknown flag", "override that is no integer", "unknown override", "raising config", "surplus field"),
    *("workdir", "missing data", "steps"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bad")
    bad_files(path)
    return path


def arguments_of(mistake, folder):
    """The command with a mistake in it, and a part of its message."""
    arguments, expected = {**MISTAKES, **MISTAKES_AFTER_TRAINING}[mistake]
    return [a.replace("{tmp}", str(folder)) for a in arguments], expected.replace("{tmp}", str(folder))


def refuse(arguments, expected, monkeypatch, capfd):
    """The command, in this process and on one device, is refused with the message and logs no other error."""
    device = jax.devices()[0]
    monkeypatch.setattr("jax.devices", lambda: [device])
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.path", [*sys.path])
    with pytest.raises(UserError) as error:
        main_lib.run_mode(*read(*arguments))
    assert expected in str(error.value)
    assert "rror" not in capfd.readouterr().err


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, folder, monkeypatch, capfd):
    arguments, expected = arguments_of(mistake, folder)
    if mistake != "no run to report on" and not any(a.startswith("--workdir") for a in arguments):
        arguments.append(f"--workdir={folder}/run")
    refuse(arguments, expected, monkeypatch, capfd)


def test_a_run_that_cannot_start_leaves_no_folder(tmp_path, monkeypatch, capfd):
    """Unless it was there before."""
    missing = "--config.data.source=npz:/nope.npz"
    for name in ("made", "found"):
        (tmp_path / "found").mkdir(exist_ok=True)
        refuse([*TRAIN, missing, f"--workdir={tmp_path / name}"], "no file", monkeypatch, capfd)
    assert [path.name for path in tmp_path.iterdir()] == ["found"]


@pytest.mark.parametrize("mistake", [name for name in MISTAKES_AFTER_TRAINING if name not in END_TO_END])
def test_mistakes_with_weights(trained, mistake, folder, monkeypatch, capfd):
    (mode, *arguments), expected = arguments_of(mistake, folder)
    command = [mode, DIGITS, f"--workdir={trained[0]}", *LIGHT, *arguments]
    refuse(command, expected, monkeypatch, capfd)


@pytest.mark.parametrize("mistake", END_TO_END)
def test_mistakes_are_one_line(trained, mistake, folder):
    (mode, *arguments), expected = arguments_of(mistake, folder)
    after = mistake in MISTAKES_AFTER_TRAINING
    if not any(a.startswith("--workdir") for a in arguments):
        arguments.insert(0, f"--workdir={trained[0] if after else folder / 'run'}")
    done = forked.run(mode, *([DIGITS, *LIGHT] if after else []), *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    *before, line = done.stderr.splitlines()
    # With weights, the log comes first.
    assert not any("error" in each for each in before) if after else not before, done.stderr
    assert line.startswith("jvdm: error: ")
    assert expected in line


def test_changed_config_is_refused(trained):
    workdir, _ = trained
    before = sorted(p.name for p in (workdir / "checkpoints").iterdir())
    done = forked.run("--mode=train", DIGITS, f"--workdir={workdir}", *LIGHT, "--config.optimizer.b1=0.8")
    assert done.returncode != 0
    assert "optimizer.b1 (saved 0.9, given 0.8)" in done.stderr
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == before
    done = forked.run("--mode=eval", DIGITS, f"--workdir={workdir}", *LIGHT, "--config.network.hidden=16")
    assert "network.hidden (saved 32, given 16)" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.long
def test_full_disk_while_saving(trained, tmp_path):
    """A limit on file size stands for a full disk: one line, and the checkpoint of step 2 is still used."""
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", str(trained[0]), str(workdir)], check=True)
    more = [a for a in LIGHT if "num_steps" not in a] + ["--config.training.num_steps=4"]
    command = [sys.executable, "main.py", "--mode=train", DIGITS, f"--workdir={workdir}", *more]
    quoted = " ".join(f"'{c}'" for c in command)
    # 32 blocks of 1024 bytes: metrics and config fit, the state's arrays do not.
    done = run_alone(
        "bash", "-c", f"trap '' XFSZ; ulimit -f 32; exec {quoted}", JAX_ENABLE_COMPILATION_CACHE="false"
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("jvdm: error: ")
    after = forked.run("--mode=sample", DIGITS, f"--workdir={workdir}", *LIGHT)
    assert after.returncode == 0, after.stderr
    assert "weights of step 2" in after.stderr


def test_no_tensorflow(trained):
    """Nothing that any mode imports imports TensorFlow."""
    code = "import sys, jvdm.cli.commands; assert 'tensorflow' not in sys.modules; print('tf-free')"
    done = run_alone(sys.executable, "-c", code)
    assert done.stdout.strip() == "tf-free", done.stderr


def test_core_needs_few_packages():
    """Model, train step, evaluation and sampling need jax, flax, optax, orbax, diffrax and ml_collections."""
    others = {"tensorflow_datasets", "clu", "tensorboardX", "grain", "sklearn", "PIL", "tqdm", "jinja2"}
    others.add("matplotlib")
    code = (
        "import sys, jvdm.model, jvdm.training.step, jvdm.evaluation, jvdm.evaluation.sampling, jvdm.config; "
        f"print({others} & set(sys.modules))"
    )
    done = run_alone(sys.executable, "-c", code)
    assert done.stdout.strip() == "set()", done.stderr
