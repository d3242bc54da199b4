"""Every remedy in a message about a config is carried out: what the message says makes the config right."""

import ast
import itertools
import re

import jax
import numpy as np
import pytest
from helpers import tiny
from helpers.commands import ROOT

from jvdm import config as config_lib
from jvdm import data
from jvdm import model as model_lib
from jvdm.config import overrides
from jvdm.core import sharding
from jvdm.core.errors import UserError
from jvdm.evaluation import suite
from jvdm.evaluation.sampling import Sampling, given_latents
from jvdm.training.intervals import check_intervals

LINEAR_BETA = {
    "schedule.name": "linear_beta",
    "training.objective": "score_matching",
    "model.time_input": "t",
    "eval.estimators": "ode",
    "eval.ode.dequantization.name": "uniform",
    "sample.pixels": "argmax",
}
CONTINUOUS = {
    **LINEAR_BETA,
    "network.name": "mlp",
    "data.source": "swissroll",
    "data_map.name": "identity",
    "eval.ode.dequantization.name": "none",
}
LATENT = {"latent.name": "k_subset", "schedule.name": "polynomial", "encoder.name": "cnn"}
SCORE = {"training.objective": "score_matching"}

# Name of a row -> what is wrong, and the remedy in the words of the message: fields that it names.
MISTAKES = {
    "batch": ({"training.batch_size": 0}, {"training.batch_size": 1}),
    "dispatch": ({"training.steps_per_dispatch": 0}, {"training.steps_per_dispatch": 1}),
    "microbatches": ({"training.microbatches": 0}, {"training.microbatches": 1}),
    "interval": ({"training.steps_per_dispatch": 5, "training.log_every": 7}, {"training.log_every": 10}),
    "rotate": ({"augmentation.name": "vdm", "data.shape": (8, 6, 1)}, {"augmentation.rotate": False}),
    "augmentation": ({**CONTINUOUS, "augmentation.name": "flip"}, {"augmentation.name": "none"}),
    "levels": ({"data.num_levels": 12}, {"data.num_levels": 17}),
    "levels by themselves": ({"data.num_levels": 12}, {"data.num_levels": 0}),
    "levels of continuous data": ({**CONTINUOUS, "data.num_levels": 2}, {"data.num_levels": 0}),
    "estimators of a latent": ({**LATENT, "eval.estimators": "elbo"}, {"eval.estimators": "ode"}),
    "scoreflow's start": (
        {**LINEAR_BETA, "eval.estimators": "scoreflow", "eval.scoreflow.epsilon": 0.0},
        {"eval.scoreflow.epsilon": 1e-5},
    ),
    "scoreflow's times": (
        {"schedule.name": "learned_scalar", "eval.estimators": "scoreflow"},
        {"eval.scoreflow.importance": False},
    ),
    "dequantization of continuous data": (
        {**CONTINUOUS, "eval.ode.dequantization.name": "uniform"},
        {"eval.ode.dequantization.name": "none"},
    ),
    "start of pixels": (
        {**LATENT, "eval.estimators": "ode", "eval.ode.dequantization.name": "uniform"},
        {"eval.ode.dequantization.start_gamma": -13.3},
    ),
    "dequantization without noise": (
        {**LINEAR_BETA, "eval.ode.dequantization.name": "truncated_normal"},
        {"eval.ode.dequantization.name": "uniform"},
    ),
    "dequantization without noise, by time": (
        {**LINEAR_BETA, "eval.ode.dequantization.name": "truncated_normal"},
        {"schedule.t_min": 1e-5},
    ),
    "importance samples": (
        {
            "eval.estimators": "ode",
            "eval.ode.dequantization.analytic_entropy": True,
            "eval.ode.importance_samples": 3,
            "eval.ode.trace.probes": 2,
        },
        {"eval.ode.dequantization.analytic_entropy": False},
    ),
    "probes of importance samples": (
        {
            "eval.estimators": "ode",
            "eval.ode.importance_samples": 3,
            "eval.ode.trace.probes": 1,
        },
        {"eval.ode.trace.probes": 2},
    ),
    "sampled pixels": ({**LINEAR_BETA, "sample.pixels": "sampled"}, {"sample.pixels": "argmax"}),
    "likelihood of samples": ({"sample.log_likelihood": True}, {"sample.sampler.name": "ode"}),
    "bound without noise at 0": (
        {**LINEAR_BETA, "eval.estimators": "vlb"},
        {"eval.estimators": "elbo,ode"},
    ),
    "bound without noise at 0, by time": (
        {**LINEAR_BETA, "eval.estimators": "vlb"},
        {"schedule.t_min": 1e-5},
    ),
    "data map": ({**CONTINUOUS, "data_map.name": "scaling"}, {"data_map.name": "identity"}),
    "objective of continuous data": (
        {**CONTINUOUS, "training.objective": "bound", "schedule.t_min": 1e-5},
        {"training.objective": "score_matching"},
    ),
    "objective without noise at 0": (
        {**LINEAR_BETA, "training.objective": "bound"},
        {"training.objective": "score_matching"},
    ),
    "objective without noise at 0, by time": (
        {**LINEAR_BETA, "training.objective": "bound"},
        {"schedule.t_min": 1e-5},
    ),
    "time input": ({**LINEAR_BETA, "model.time_input": "gamma"}, {"model.time_input": "t"}),
    "time input, by time": ({**LINEAR_BETA, "model.time_input": "gamma"}, {"schedule.t_min": 1e-5}),
    "steps without noise at 0": (
        {"schedule.name": "linear_beta", "model.timesteps": 10, "model.time_input": "t"},
        {"schedule.t_min": 1e-5},
    ),
    "rank of the network": ({**CONTINUOUS, "network.name": "vdm_unet"}, {"network.name": "mlp"}),
    "latent of a schedule": ({**LATENT, "latent.name": "none"}, {"latent.name": "k_subset"}),
    "truncation": (
        {**LINEAR_BETA, "score_matching.truncation": 0.0},
        {"score_matching.truncation": 1e-3},
    ),
    "multipliers": (
        {"network.name": "ddpm_unet", "network.multipliers": (1, 2, 2, 2, 2)},
        {"network.multipliers": (1, 2, 2, 2)},
    ),
    "variance in steps": (
        {
            "schedule.name": "monotone_network",
            "training.schedule_objective": "variance",
            "model.timesteps": 10,
        },
        {"model.timesteps": 0},
    ),
    "variance of a fixed schedule": (
        {"training.schedule_objective": "variance"},
        {"schedule.name": "monotone_network"},
    ),
    "times of a learned schedule": (
        {"schedule.name": "learned_scalar", "time_density.name": "importance", "path.name": "straight"},
        {"schedule.name": "fixed_linear"},
    ),
    "biased times of a bound": (
        {"time_density.name": "debiased_released", "schedule.name": "linear_beta", "schedule.t_min": 1e-5},
        {"training.objective": "score_matching"},
    ),
    "second order of score matching": (
        {**SCORE, "schedule.name": "fixed_linear", "training.second_order": True},
        {"training.objective": "bound"},
    ),
    "pixels' times without such a schedule": (
        {**LATENT, "schedule.name": "fixed_linear", "model.time_input": "pixel_gamma"},
        {"schedule.name": "polynomial"},
    ),
    "latents of none": ({"sample.latents": "posterior"}, {"sample.latents": "prior"}),
}

# Messages of another kind, or that need a run: a part of the message, and the test that does what it says.
OF_COMMANDS = "tests/cli/test_remedies_of_commands.py::"
ELSEWHERE = {
    "first_index is": "tests/test_api.py::test_numpys_numbers_are_as_good_as_pythons",
    "t has shape": "tests/test_api.py::test_score",
    "give latents=": "tests/test_api.py::test_a_model_with_a_latent",
    "holds checkpoints already": OF_COMMANDS + "test_another_workdir_for_an_import",
    "a folder; give a file": OF_COMMANDS + "test_flags_of_configs",
    "keep_checkpoints is": "tests/cli/test_own_config.py::test_which_checkpoints_are_kept",
    "is a section": OF_COMMANDS + "test_flags_of_configs",
    "use the saved values": OF_COMMANDS + "test_saved_values_of_a_config",
    "give a finite number": OF_COMMANDS + "test_numbers_that_are_not_finite",
    "there is no home directory": "tests/cli/test_advice.py::test_a_home_directory_that_is_not_there",
    "free space there": OF_COMMANDS + "test_a_full_disk",
    "the processes were given": "tests/cli/test_two_processes.py::test_what_is_not_given_to_both",
    "--num_processes=": OF_COMMANDS + "test_flags_of_several_processes",
    "did not come together": OF_COMMANDS + "test_flags_of_several_processes",
    "config.training.fsdp is": OF_COMMANDS + "test_devices_that_fsdp_does_not_divide",
    "cannot download": "tests/data/test_data_published.py::test_prepare_and_read",
    " bytes, not ": "tests/data/test_data_published.py::test_truncated_archive",
    "has the checksum (sha256)": "tests/data/test_data_published.py::test_wrong_checksum",
    "the dataset prepared in": "tests/data/test_data_published.py::test_damaged_array_records",
    "write it with numpy.savez": OF_COMMANDS + "test_archives_of_numpy",
    "names no path": OF_COMMANDS + "test_sources_without_their_path",
    "the refined ODE solver": "tests/evaluation/test_ode.py::test_a_refined_solver_that_does_not_finish",
    "cannot draw": "tests/evaluation/test_sampling.py::test_errors",
    "did not reach the end time for": "tests/evaluation/test_sampling.py::test_a_solver_that_does_not_finish",
    "draws per image": OF_COMMANDS + "test_draws",
    "not a line of metrics": OF_COMMANDS + "test_a_damaged_line_of_metrics_is_deleted",
    "does not come back": "tests/runs/test_trial_save.py::test_other_paths_are_as_good_as_any",
    "has no config.json; give": OF_COMMANDS + "test_a_run_without_its_config",
    "or train first": OF_COMMANDS + "test_no_checkpoint_yet",
    "cannot be written": OF_COMMANDS + "test_another_workdir",
    "trains there already": OF_COMMANDS + "test_another_workdir",
    "; remove it, or": OF_COMMANDS + "test_another_workdir",
    "cannot be opened": OF_COMMANDS + "test_another_workdir",
    "are both given": "tests/training/test_branch_from.py::test_state_and_step_are_kept",
    "set it to 1": OF_COMMANDS + "test_steps_that_a_dispatch_does_not_divide",
    "use another --workdir, with": "tests/training/test_branch_from.py::test_other_data_is_a_branch",
    "leaves none to ": "tests/data/test_data_splitting.py::test_a_split_of_no_image",
    "test_fraction is": "tests/data/test_data_splitting.py::test_a_split_of_no_image",
    "split_seed is": "tests/data/test_data_splitting.py::test_a_negative_seed",
    "was trained on a split": "tests/training/test_branch_from.py::test_evaluating_another_split",
    "branches from is at step": "tests/training/test_branch_from.py::test_state_and_step_are_kept",
}


def complaint(fields):
    """What is said about a config of the defaults with these fields; None if it is right."""
    fields = dict(fields)
    shape = fields.pop("data.shape", None)
    c = config_lib.default().unlock()
    try:
        overrides.put(c, fields)
        config_lib.check_complete(c)
        check_intervals(c)
        mesh = tiny.mesh()
        sharding.check_batch(
            "config.training.batch_size", c.training.batch_size, mesh, c.training.microbatches
        )
        found, levels = data.data_spec(**c.data)
        augmentation = data.AUGMENTATIONS.build(c.augmentation)
        augmentation.draw((2, *(shape or found)), np.random.default_rng(0))
        model = model_lib.build(c, found, levels)
        if "network.name" in fields:
            jax.eval_shape(model.init, jax.random.key(0))
        suite.build(c, model, mesh)
        Sampling(model, mesh, c.sample, batch_size=1)
        given_latents(c.sample.latents, model, {}, lambda: None, jax.random.key(0))
    except UserError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def complaints():
    return {name: complaint(wrong) for name, (wrong, _) in MISTAKES.items()}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_remedy_is_in_the_message_and_helps(complaints, name):
    message, (wrong, remedy) = complaints[name], MISTAKES[name]
    assert message is not None, "nothing is wrong"
    assert "\n" not in message
    for field, value in remedy.items():
        section, _, last = field.rpartition(".")
        named = section.rpartition(".")[2] if last == "name" else last
        assert named in message or (isinstance(value, str) and value in message), message
        if isinstance(value, str):
            assert all(part in message for part in value.split(",")), message
    assert complaint({**wrong, **remedy}) is None


REMEDY = re.compile(
    r"(?:[:;,] |\bor |, and )(?:choose|give|set|raise|use|lower|unset|remove|write|stop|train) "
)


def messages():
    """Every message of a UserError in the package, with \\0 for what is filled in, and where it is."""

    def texts(node):
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=values):
                return ["".join(each) for each in itertools.product(*map(texts, values))]
            case ast.BinOp(left=left, right=right):
                return ["".join(each) for each in itertools.product(texts(left), texts(right))]
            case ast.IfExp(body=body, orelse=orelse):
                return texts(body) + texts(orelse)
        return ["\0"]

    for path in sorted((ROOT / "jvdm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="UserError"), args=[message, *_]):
                    for text in texts(message):
                        if REMEDY.search(text):
                            yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def test_no_message_with_a_remedy_is_without_a_test(complaints):
    """Those of a config are above; for the others the test is named here."""
    said = [message for message in complaints.values() if message]
    missing = []
    for place, text in messages():
        pattern = ".*".join(re.escape(part) for part in re.split("\0+", text))
        if not any(re.fullmatch(pattern, message) for message in said):
            tests = [test for literal, test in ELSEWHERE.items() if literal in text]
            if not tests:
                missing.append(f"{place}: {text!r}")
            for test in tests:
                file, _, name = test.partition("::")
                assert f"def {name}(" in (ROOT / file).read_text(), test
    assert not missing, "\n".join(missing)
