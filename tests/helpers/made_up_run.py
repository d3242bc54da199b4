"""A workdir as a run leaves it, without a run."""

import json
import pathlib

import numpy as np

from helpers import tiny
from jvdm.evaluation.record import ODESettings, Provenance, Result, SolverError, Surrogate, Term
from jvdm.reporting import images as image_lib
from jvdm.runs import saved

HOSTILE = "</title></script></style><img src=x onerror=alert(1)>\"'&\u202e"


def metrics(num_lines=30, total="bpd"):
    """Lines of `metrics.jsonl`; every tenth is of test data."""
    lines = []
    for i in range(1, num_lines + 1):
        loss = 2.0 + 4.0 * np.exp(-6.0 * i / num_lines)
        lines.append({"step": 10 * i, "time": 1.7e9 + i, f"train/{total}": loss, "train/grad_norm": 10.0 / i})
        lines[-1] |= {"train/diffusion": loss - 0.1, "train/learning_rate": 1e-3}
        if i % 10 == 0:
            lines.append(
                {"step": 10 * i, "time": 1.7e9 + i, f"test/{total}": loss + 0.1, "test/diffusion": loss}
            )
    return lines


def provenance(**changed):
    origin = vars(tiny.provenance(step=300))
    return Provenance(**{**origin, "dataset_hash": "da7a5e7", "weights_hash": "3e1947", **changed})


def vlb(**changed):
    """A record of a variational bound."""
    fields = {
        "estimator": "vlb",
        "description": "VLB, continuous",
        "is_bound": True,
        "prior": "N(0, sigma_1^2 I)",
        "latent_charge": "exact KL(q || p)",
        "timesteps": 0,
        "time_density": "uniform",
        "value": 2.6069,
        "units": "bits/dim",
        "standard_error": 0.011,
        "monte_carlo_error": 0.0053,
        "terms": {
            "reconstruction": Term(mean=0.1847, standard_error=0.0008),
            "diffusion": Term(mean=2.4222, standard_error=None),
        },
        "num_images": 297,
        "num_draws": 64,
        "ode": None,
        "slices": None,
        "surrogate": Surrogate(value=2.5, charge=0.01, difference="charges less"),
        "provenance": provenance(),
    }
    return Result(**{**fields, **changed})


def ode(**changed):
    """A record of an ODE likelihood."""
    settings = ODESettings(
        dequantization={"name": "truncated_normal"},
        importance_samples=4,
        trace={"name": "hutchinson", "probes": 2},
        share_probes=True,
        solver={"name": "adaptive", "method": "dopri5", "tolerance": 1e-5},
        mean_nfe=336.2,
        max_nfe=412.0,
        solver_error=SolverError(
            bias=0.0012, standard_error=0.0008, rms=0.002, num_images=16, finer="dopri5 at 1e-06"
        ),
    )
    fields = {"estimator": "ode", "description": "ODE, truncated normal, K = 4", "ode": settings}
    return vlb(**fields, time_density=None, num_draws=1, surrogate=None, **changed)


def name(record: Result) -> str:
    """A file name, as an evaluation makes it."""
    kind = "ode_K4" if record.ode else f"vlb_T{record.timesteps}" if record.timesteps else "vlb_continuous"
    return f"{kind}_step{record.provenance.step}_{record.num_images}x{record.num_draws}_seed0"


def write(path: pathlib.Path, *, config=None, lines=None, records=None, total="bpd") -> pathlib.Path:
    """The workdir: config, metrics, two records, grids, plots."""
    path.mkdir(parents=True)
    c = tiny.config(num_steps=400) if config is None else config
    (path / "config.json").write_text(saved.config_text(c))
    lines = metrics(total=total) if lines is None else lines
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for record in [vlb(), ode()] if records is None else records:
        record.write(path / "eval" / f"{name(record)}.json")
    rng = np.random.default_rng(0)
    for grid in ("step_00000100", "step_00000200", "samples_16x8x8x1"):
        image_lib.write_png(
            path / "samples" / f"{grid}.png", rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        )
    for plot in (
        "schedule",
        "pixel_schedules",
        "schedule_step300_0a1b2c3d",
        f"loss_against_gamma_{name(vlb())}",
    ):
        image_lib.write_png(path / "plots" / f"{plot}.png", np.full((80, 200, 3), 200, np.uint8))
    (path / "checkpoints" / "300").mkdir(parents=True)
    return path
