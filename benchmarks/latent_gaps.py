"""Estimators of models with a latent against data of known probability, with a perfect network.

    python benchmarks/latent_gaps.py [--repeats=256]

Prints a table of gaps in bits/dim of 4-dimensional data of 256 levels (`tests/known_latent_models.py`): the
estimate less -log P(x), and what that must be by enumeration. No estimate of a bound may be below 0 by more
than its error, and the ODE solver's, up to 0.001. Latents are one of 6 classes, or a k-subset; schedules are
of every pixel, and depend on the latent.

    subsets, classes:   c is told by x in part; the encoder has the marginals of the posterior
    untrained:          an encoder that has learned little
    posterior:          an encoder that has the posterior itself
    telling:            x determines c. "as released" charges the KL of one class, and is not a bound
"""

import os
import sys
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]

import jax
import script
from helpers import known_latent_models as models

from jvdm.core.tables import table, with_error

OTHER = {"path": "straight", "parameterization": "velocity", "schedule": "pixel_monotone"}


def row(estimator, oracle, estimate, *, charge="KL", num_samples="-"):
    gap, error = estimate.gap
    return {
        "estimator": estimator,
        "data": oracle,
        "charge": charge,
        "K": str(num_samples),
        "gap, bits/dim": with_error(gap, error, digits=5),
        "expected": f"{(estimate.expected - estimate.truth).mean():.5f}",
        "NFE": "-" if estimate.nfe is None else f"{estimate.nfe:.0f}",
    }


def main() -> None:
    parser = script.Parser(__doc__)
    parser.add_argument("--repeats", type=script.whole, default=256, help="images of every point")
    args = parser.parse_args()
    start, rows = time.perf_counter(), []
    for oracle in ("subsets", "subsets, untrained", "classes"):
        for name, options in (("", {}), (", straight, monotone", OTHER)):
            estimate = models.vlb(oracle, repeats=args.repeats, draws=64, **options)
            rows.append(row(f"VLB{name}", oracle, estimate))
    for oracle in ("subsets", "subsets, untrained", "classes", "classes, posterior"):
        for num_samples in (1, 3):
            estimate = models.ode(oracle, repeats=args.repeats, num_samples=num_samples)
            charge = "KL" if num_samples == 1 else "log q - log p"
            rows.append(row("ODE, exact trace", oracle, estimate, charge=charge, num_samples=num_samples))
    estimate = models.ode("subsets", repeats=args.repeats, probes=1)
    rows.append(row("ODE, 1 probe", "subsets", estimate, num_samples=1))
    for name, run, options in (
        ("VLB", models.vlb, {"repeats": args.repeats, "draws": 64}),
        ("ODE, exact trace", models.ode, {"repeats": 16}),
    ):
        rows.append(row(name, "telling", run("telling", **options)))
        mode = run("telling", latent="k_hot_surrogate", **options)
        rows.append(row(name, "telling", mode, charge="mode, log C(6, 3)"))
        released = row(name, "telling", mode.with_charge("surrogate"), charge="as released")
        rows.append({**released, "expected": "-"})
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    print()
    print(table(rows))
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    script.run(main)
