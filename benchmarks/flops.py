"""FLOPs of a program, counted in its jaxpr: what it asks for, on whatever device it runs."""

import collections
import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core


def flops_of(jaxpr: Any) -> collections.Counter:
    """FLOPs of one run on all devices, of convolutions and of matrix products.

    An open loop counts as one round.
    """
    total: collections.Counter = collections.Counter()
    for eqn in jaxpr.eqns:
        shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars)]
        match eqn.primitive.name:
            case "convolve_3x3":
                total["convolutions"] += 18 * math.prod(shapes[0]) * shapes[1][3]
            case "convolve_3x3_kernel":
                total["convolutions"] += 18 * math.prod(shapes[0]) * shapes[1][3]
            case "conv_general_dilated":
                kernel, out = shapes[1], eqn.params["dimension_numbers"].rhs_spec[0]
                total["convolutions"] += 2 * math.prod(shapes[2]) * math.prod(kernel) // kernel[out]
            case "dot_general":
                (contracted, _), _ = eqn.params["dimension_numbers"]
                total["products"] += 2 * math.prod(shapes[2]) * math.prod(shapes[0][i] for i in contracted)
        for inner, times in _called(eqn):
            for kind, count in flops_of(inner).items():
                total[kind] += times * count
    return total


def _called(eqn: Any) -> Iterator[tuple[Any, int]]:
    """(jaxpr, how often it runs) of everything an equation calls; of branches, the most expensive."""
    if eqn.primitive.name == "cond":
        branches = [branch.jaxpr for branch in eqn.params["branches"]]
        yield max(branches, key=lambda branch: sum(flops_of(branch).values())), 1
        return
    times = eqn.params.get("length", 1)
    if eqn.primitive.name == "shard_map":  # what is inside is one device's part
        mesh = eqn.params["mesh"]
        times = math.prod(mesh.shape[axis] for axis in eqn.params["newly_manual_axes"])
    for value in eqn.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, core.Jaxpr):
                yield each, times
            elif isinstance(each, core.ClosedJaxpr):
                yield each.jaxpr, times
