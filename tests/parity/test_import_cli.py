"""`--mode=import` of a recorded checkpoint, then `--mode=eval` and `--mode=sample` with the result."""

import json
import pathlib

import numpy as np
import pytest
from helpers import forked, peers

ROOT = pathlib.Path(__file__).parent.parent.parent
SCHEDULES = {
    "fixed": "fixed_linear",
    "learnable_scalar": "learned_scalar",
    "learnable_nnet": "monotone_network_released",
}
PATHS = {"VP": "variance_preserving", "SP": "straight"}


def main(*arguments):
    done = forked.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done


def small(images, workdir):
    """The flags that give the published config two images, and little to do."""
    np.savez(workdir / "images.npz", train_images=images, test_images=images[:2])
    return [
        "--config=configs/vdm_cifar10.py",
        f"--workdir={workdir / 'run'}",
        f"--config.data.source=npz:{workdir / 'images.npz'}",
        "--config.eval.estimators=vlb",
        "--config.eval.draws=2",
        "--config.eval.batch_size=2",
        "--config.sample.num_images=2",
        "--config.sample.batch_size=2",
        "--config.sample.steps=2",
    ]


def overrides(case, workdir):
    """The flags that give the published config a case's settings and two of its images."""
    model = case.config["model"]
    return [
        *small(case.io["images"], workdir),
        f"--config.schedule.name={SCHEDULES.get(model['gamma_type'], 'polynomial')}",
        f"--config.schedule.gamma_min={model['gamma_min']}",
        f"--config.schedule.gamma_max={model['gamma_max']}",
        f"--config.model.timesteps={model['sm_n_timesteps']}",
        f"--config.network.channels={model['sm_n_embd']}",
        f"--config.network.num_blocks={model['sm_n_layer']}",
        f"--config.network.attention={model['with_attention']}",
    ]


def check_record(step, workdir):
    """The one evaluation is of the checkpoint's moving average, on both images."""
    (record,) = (workdir / "run" / "eval").glob("*.json")
    record = json.loads(record.read_text())
    assert (record["estimator"], record["num_images"]) == ("vlb", 2)
    assert record["units"] == "bits/dim" and np.isfinite(record["value"])
    provenance = record["provenance"]
    assert (provenance["step"], provenance["weights"]) == (step, "ema")


@pytest.mark.parametrize("case", peers.cases("vdm")[:1])
def test_import_eval_sample(case, tmp_path):
    config = overrides(case, tmp_path)
    main("--mode=import", "--source=vdm", f"--checkpoint={case.checkpoint}", *config)
    main("--mode=eval", *config)
    check_record(case.config["step"], tmp_path)
    main("--mode=sample", *config)
    (samples,) = (tmp_path / "run" / "samples").glob("*.npz")
    assert np.load(samples)["arr_0"].shape == (2, *case.io["images"].shape[1:])


def idode_case():
    """One on the straight path with velocity, so that neither is the published config's, if there is one."""
    cases = peers.cases("idode")
    settings = [case.values[0].config["model"] if case.values[0] else {} for case in cases]
    other = [c for c, s in zip(cases, settings, strict=True) if s.get("schedule") == "SP" and s["velocity"]]
    return (other or cases)[:1]


@pytest.mark.parametrize("case", idode_case())
def test_import_eval_idode(case, tmp_path):
    model = case.config["model"]
    config = [
        *overrides(case, tmp_path),
        f"--config.path.name={PATHS[model['schedule']]}",
        f"--config.parameterization.name={'velocity' if model['velocity'] else 'noise'}",
        f"--config.time_density.name={'importance' if model['importance'] else 'uniform'}",
    ]
    main("--mode=import", "--source=idode", f"--checkpoint={case.checkpoint}", *config)
    main("--mode=eval", *config)
    check_record(case.config["step"], tmp_path)


def mulan_case():
    """One whose network sees the gamma of every pixel, if there is one."""
    cases = peers.cases("mulan")
    settings = [case.values[0].config["model"] if case.values[0] else {} for case in cases]
    other = [c for c, s in zip(cases, settings, strict=True) if s.get("unet_type") == "ldm"]
    return (other or cases)[:1]


@pytest.mark.parametrize("case", mulan_case())
def test_import_eval_mulan(case, tmp_path):
    """With the rigorous k-subset latent where the checkpoint's is the surrogate of one."""
    model = case.config["model"]
    latents = {"topk": "k_subset", "gumbel": "gumbel", "gaussian": "gaussian"}
    k = [f"--config.latent.k={model['latent_k']}"] if model["latent_type"] == "topk" else []
    velocity = "velocity_from_noise" if model["velocity_from_epsilon"] else "velocity"
    config = [
        *overrides(case, tmp_path),
        f"--config.schedule.hidden={case.config['gamma_n_features']}",
        f"--config.parameterization.name={velocity if 'velocity' in case.config['vdm_type'] else 'noise'}",
        f"--config.latent.name={latents[model['latent_type']]}",
        f"--config.latent.size={model['latent_size']}",
        *k,
        f"--config.encoder.channels={model['sm_n_embd']}",
        f"--config.encoder.num_blocks={model['forward_n_layer']}",
        f"--config.encoder.attention={model['with_attention']}",
        "--config.encoder.num_groups=32",
        f"--config.model.time_input={'pixel_gamma' if model['unet_type'] == 'ldm' else 'gamma'}",
    ]
    main("--mode=import", "--source=mulan", f"--checkpoint={case.checkpoint}", *config)
    main("--mode=eval", *config)
    check_record(case.config["step"], tmp_path)


@pytest.mark.parametrize("case", peers.cases("addtt")[:1])
def test_import_eval_addtt(case, tmp_path):
    settings = case.config["TrainConfig"]
    schedule = {"fixed_linear": "fixed_linear", "learned_linear": "learned_scalar"}
    config = [
        *small(case.io["images_u8_nhwc"], tmp_path),
        f"--config.schedule.name={schedule[settings['noise_schedule']]}",
        f"--config.schedule.gamma_min={settings['gamma_min']}",
        f"--config.schedule.gamma_max={settings['gamma_max']}",
        f"--config.network.channels={settings['embedding_dim']}",
        f"--config.network.num_blocks={settings['n_blocks']}",
        f"--config.network.attention={settings['attention_everywhere']}",
        f"--config.network.num_heads={settings['n_attention_heads']}",
        f"--config.network.fourier={settings['use_fourier_features']}",
        "--config.network.fourier_first=5",
        "--config.network.fourier_last=6",
        f"--config.network.num_groups={settings['norm_groups']}",
        "--config.network.norm_epsilon=1e-5",
    ]
    main("--mode=import", "--source=addtt", f"--checkpoint={case.path}", *config)
    main("--mode=eval", *config)
    check_record(case.config["checkpoint_step"], tmp_path)
