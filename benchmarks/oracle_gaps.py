"""Every estimator of the likelihood against data of known probability, with a perfect network.

    python benchmarks/oracle_gaps.py [--samples=2400] [--probes=24]

Prints a table of gaps, estimate less truth, in bits/dim, of 4-dimensional data, of 256 levels but the last:

    fine_mixture: twelve points. z is exactly a mixture of normals, so that the gap of a dequantization is
                  known ("expected"): the part of the normal that is cut off, or the decoder's term.
    gaussian:     an independent normal, told to a 256th of [-1, 1]: right for uniform dequantization.
    continuous_mixture: four broad normals, told exactly.

The schedule is linear in gamma, but for the two bounds of score-based models that of the SDE, linear in beta.
Their errors are those left by control variates (`tests/known_bounds.py`). "off by 0.5" is a network whose
drift, g times the score, errs by as much.

"solver" is the part of the gap that is the ODE solver's error, known because the density of z is; "NFE"
counts network evaluations of one sample. For K = 20 noise of the trace makes the bound loose, never wrong.
"""

import math
import os
import sys
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]

import jax
import jax.numpy as jnp
import numpy as np
from helpers import known, known_bounds
from script import Parser, run, whole

from jvdm.core.records import Batch
from jvdm.core.tables import table, with_error
from jvdm.diffusion import likelihood
from jvdm.diffusion.dequantization import DEQUANTIZATIONS
from jvdm.diffusion.times import stratify
from jvdm.model import objectives

BITS = known.NUM_DIMS * math.log(2)
BOUNDS = {  # of a linear schedule
    "VLB, continuous time": {},
    "VLB, continuous, importance": {"time_density": "importance"},
    "VLB, T = 1000": {"timesteps": 1000},
}


def row(path, data, estimator, gap, error, *, expected=None, k="-", trace="-", nfe="-", solver="-"):
    return {
        "path": path,
        "data": data,
        "estimator": estimator,
        "K": str(k),
        "trace": trace,
        "gap, bits/dim": with_error(gap, error, digits=5),
        "expected": "-" if expected is None else f"{expected:.5f}",
        "solver": solver if solver == "-" else f"{solver:+.5f}",
        "NFE": nfe if nfe == "-" else f"{nfe:.0f}",
    }


def bound(path, name, num_batches=64, batch=16384):
    """A row of the variational bound."""
    data = "fine_mixture"
    oracle = known.ORACLES[data]
    model = known.build(data, path, "velocity", **BOUNDS[name])
    levels = oracle.sample(np.random.default_rng(0), batch)
    images = Batch(jnp.asarray(levels, jnp.uint8).reshape(-1, *known.SHAPE))

    def one(key):
        k_time, k_noise = jax.random.split(key)
        draws = model.draw(
            jax.random.split(k_noise, batch), stratify(jax.random.uniform(k_time, (1,)), batch)[0]
        )
        return objectives.bound(model, known.EMPTY, draws, images).total.mean()

    keys = jax.random.split(jax.random.key(0), num_batches)
    nats = np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(keys), np.float64)
    gaps = (nats + oracle.log_probability(levels).mean()) / BITS
    expected = known.gap(data, "variational")
    if model.timesteps:
        # expm1(d) / d times the integral, which is the entropy.
        step = (known.WIDE[1] - known.WIDE[0]) / model.timesteps
        expected += (math.expm1(step) / step - 1.0) * oracle.entropy / BITS
    return row(path, data, name, gaps.mean(), gaps.std(ddof=1) / math.sqrt(num_batches), expected=expected)


def densities(path, data, name, num_samples, args):
    """Two rows of the ODE: the exact trace, and probes, of the same solves."""
    oracle = known.ORACLES[data]
    levels = oracle.sample(np.random.default_rng(0), args.samples // num_samples)
    scored = known.score(
        levels,
        DEQUANTIZATIONS.build(DEQUANTIZATIONS.spec(name)),
        oracle=data,
        path=path,
        trace=known.BothTraces(probes=args.probes),
        num_samples=num_samples,
    )
    assert scored.ok
    truth = oracle.log_probability(levels)
    for trace, log_w in (
        ("exact", scored.exact[..., None]),
        (f"{args.probes} probes", scored.estimates),
    ):
        gaps = known.excess(likelihood.importance_bound(log_w).bound, truth)
        known_gap = num_samples == 1 or (name == "truncated_normal" and trace == "exact")
        yield row(
            path,
            data,
            f"ODE, {name}",
            gaps.mean(),
            gaps.std(ddof=1) / math.sqrt(len(gaps)),
            expected=known.gap(data, name) if known_gap else None,
            k=num_samples,
            trace=trace,
            nfe=scored.evaluations.mean(),
            solver=-scored.density_error.mean() / BITS,
        )


def slices(path, data, offset=0.0):
    """Rows of the bounds of score-based models."""
    every = known_bounds.gaps(
        data,
        path,
        "linear_beta",
        parameterization="drift",
        offset=offset,
        num_examples=16_384,
        num_draws=32,
    )
    expected = known.gap(data, "uniform") if data == "gaussian" else 0.0
    expected += 0.5 * offset**2 / math.log(2)
    names = {
        "random slice, exact": ("ELBO, random slice", "exact"),
        "random slice, 1 probe": ("ELBO, random slice", "1 probe"),
        "truncated, uniform times": ("ScoreFlow, uniform times", "-"),
        "truncated, importance": ("ScoreFlow, importance", "-"),
    }
    for name, (estimator, trace) in names.items():
        gap = every[name]
        estimator += f", off by {offset:g}" if offset else ""
        yield row(path, data, estimator, gap.mean, gap.error, expected=expected, trace=trace)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--samples", type=whole, default=2400, help="ODE solves of each case")
    parser.add_argument("--probes", type=whole, default=24)
    args = parser.parse_args()
    start, rows = time.perf_counter(), []
    for path in ("variance_preserving", "straight"):
        rows += [bound(path, name) for name in BOUNDS]
        for data, names in known.DEQUANTIZED.items():
            for name in names:
                for num_samples in (1, 20):
                    rows += densities(path, data, name, num_samples, args)
    for path in ("variance_preserving", "sub_variance_preserving"):
        rows += [*slices(path, "gaussian"), *slices(path, "continuous_mixture")]
        rows += slices(path, "continuous_mixture", offset=0.5)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; ODE: {known.DEFAULT.text()}")
    print()
    print(table(rows))
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    run(main)
