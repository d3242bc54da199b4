"""`--mode=import` of a recorded checkpoint, then `--mode=eval` and `--mode=sample` with the result."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import peers
import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
SCHEDULES = {
    "fixed": "fixed_linear",
    "learnable_scalar": "learned_scalar",
    "learnable_nnet": "monotone_network_released",
}


def main(*arguments):
    done = subprocess.run(
        [sys.executable, "main.py", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("case", peers.cases("vdm")[:1])
def test_import_eval_sample(case, tmp_path):
    settings = case.config
    model = settings["model"]
    images = case.io["images"]
    np.savez(tmp_path / "images.npz", train_images=images, test_images=images[:2])
    config = [
        "--config=configs/vdm_cifar10.py",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.source=npz:{tmp_path / 'images.npz'}",
        f"--config.schedule.name={SCHEDULES[model['gamma_type']]}",
        f"--config.schedule.gamma_min={model['gamma_min']}",
        f"--config.schedule.gamma_max={model['gamma_max']}",
        f"--config.model.timesteps={model['sm_n_timesteps']}",
        f"--config.network.channels={model['sm_n_embd']}",
        f"--config.network.num_blocks={model['sm_n_layer']}",
        f"--config.network.attention={model['with_attention']}",
        "--config.eval.draws=2",
        "--config.eval.batch_size=2",
        "--config.sample.num_images=2",
        "--config.sample.batch_size=2",
        "--config.sample.steps=2",
    ]
    main("--mode=import", "--source=vdm", f"--checkpoint={case.checkpoint}", *config)
    main("--mode=eval", *config)
    (record,) = (tmp_path / "run" / "eval").glob("*.json")
    record = json.loads(record.read_text())
    assert (record["step"], record["num_images"], record["weights"]) == (settings["step"], 2, "ema")
    assert np.isfinite(record["bits_per_dim"])
    main("--mode=sample", *config)
    (samples,) = (tmp_path / "run" / "samples").glob("*.npz")
    assert np.load(samples)["arr_0"].shape == (2, *images.shape[1:])
