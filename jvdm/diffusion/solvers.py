"""ODE solvers of one example, jitted whole, from diffrax.

1. adaptive: the step is controlled for each example by itself (a vmapped solve), so that its result does
   not depend on its batch mates. The error of a step is the larger of the root mean squares over each
   field of the state, every entry in units of tolerance (1 + |y|).
2. fixed: equal steps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvdm.core import options
from jvdm.core.options import option
from jvdm.core.registry import Registry

State = Any
Time = Float[Array, ""] | float
VectorField = Callable[[Float[Array, ""], State], State]


class Solution(NamedTuple):
    """Of one example.

    Attributes:
        state: at the end.
        evaluations: of the vector field (NFE).
        ok: whether the end was reached with finite numbers.
    """

    state: State
    evaluations: Int[Array, ""]
    ok: Bool[Array, ""]


class Solver(Protocol):
    """A solver of ODEs of one example, a frozen dataclass."""

    def __call__(self, field: VectorField, state: State, start: Time, end: Time) -> Solution:
        """The state at `end` from that at `start`.

        Args:
            field: (t, state) -> d state / dt.
            state: a tree of arrays, without a batch axis.
            start, end: of time, in either order.
        """
        ...

    def finer(self) -> "Solver":
        """The solver of the same method that the error is estimated by."""
        ...

    def text(self) -> str:
        """For tables."""
        ...


SOLVERS = Registry("ODE solver", Solver)


class RK4(diffrax.AbstractERK):
    """The classical Runge-Kutta method; the embedded error is not used."""

    tableau: ClassVar[Any] = diffrax.ButcherTableau(
        a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        b_error=np.array([1 / 6, 1 / 3, 1 / 3, -5 / 6]),
        c=np.array([0.5, 0.5, 1.0]),
    )
    interpolation_cls: ClassVar[Callable] = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms):
        return 4


ADAPTIVE_METHODS: dict[str, Any] = {
    "dopri5": diffrax.Dopri5,
    "tsit5": diffrax.Tsit5,
    "dopri8": diffrax.Dopri8,
}
FIXED_METHODS: dict[str, Any] = {"rk4": RK4, "heun": diffrax.Heun, **ADAPTIVE_METHODS}


def largest_rms(error: State) -> Float[Array, ""]:
    """The largest root mean square over the fields of a state."""
    return jnp.max(jnp.stack([jnp.sqrt(jnp.mean(a**2)) for a in jax.tree.leaves(error)]))


@SOLVERS.register("adaptive")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Solver (1).

    Attributes:
        method: "dopri5" (order 5), "tsit5" (5) or "dopri8" (8).
        tolerance: relative and absolute, of every step.
        max_steps: rejected ones included; an example that needs more is not `ok`.
    """

    method: str = option("dopri5", choices=ADAPTIVE_METHODS)
    tolerance: float = option(1e-5, above=0.0, below=1.0)
    max_steps: int = option(1000, low=1)

    def __post_init__(self):
        options.check(self)

    def __call__(self, field: VectorField, state: State, start: Time, end: Time) -> Solution:
        """The state at `end` from that at `start`; `field` is (t, state) -> d state / dt."""
        method = ADAPTIVE_METHODS[self.method]()
        controller = diffrax.PIDController(rtol=self.tolerance, atol=self.tolerance, norm=largest_rms)
        solution = _solve(method, controller, self.max_steps, field, state, start, end)
        # One more at the start, the first stage: diffrax takes a first step of 0.01, without a trial.
        evaluations = 1 + _per_step(method) * solution.stats["num_steps"]
        return _finish(solution, evaluations)

    def finer(self) -> "Adaptive":
        """With a tenth of the tolerance, and room for the steps that takes."""
        return dataclasses.replace(self, tolerance=0.1 * self.tolerance, max_steps=4 * self.max_steps)

    def text(self) -> str:
        """For tables."""
        return f"{self.method}, tolerance {self.tolerance:g}"


@SOLVERS.register("fixed")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixed:
    """Solver (2).

    Attributes:
        method: "rk4" (order 4), "heun" (2), or one of the adaptive methods without its control.
        num_steps: equal ones in time.
    """

    method: str = option("rk4", choices=FIXED_METHODS)
    num_steps: int = option(100, low=1)

    def __post_init__(self):
        options.check(self)

    def __call__(self, field: VectorField, state: State, start: Time, end: Time) -> Solution:
        """As of `Adaptive`."""
        # The ends as they are: diffrax compares them, and XLA may round a computed one in two ways.
        inner = start + (end - start) * (np.arange(1, self.num_steps) / self.num_steps)
        times = jnp.concatenate([jnp.atleast_1d(start), inner, jnp.atleast_1d(end)])
        return solve_at(FIXED_METHODS[self.method](), times, field, state)

    def finer(self) -> "Fixed":
        """With twice the steps."""
        return dataclasses.replace(self, num_steps=2 * self.num_steps)

    def text(self) -> str:
        """For tables."""
        return f"{self.method}, {self.num_steps} steps"


def solve_at(method: Any, times: Float[Array, " n"], field: VectorField, state: State) -> Solution:
    """Steps between given times, by a method of diffrax."""
    controller = diffrax.StepTo(ts=times)
    solution = _solve(method, controller, len(times), field, state, times[0], times[-1])
    return _finish(solution, jnp.int32(_per_step(method) * (len(times) - 1) + int(method.tableau.fsal)))


def _solve(method, controller, max_steps, field, state, start, end) -> diffrax.Solution:
    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: field(t, y)),
        method,
        t0=start,
        t1=end,
        dt0=None,
        y0=state,
        stepsize_controller=controller,
        adjoint=diffrax.ForwardMode(),  # nothing is differentiated backwards through a solve
        max_steps=max_steps,
        throw=False,
    )


def _per_step(method: Any) -> int:
    """Evaluations per step: a first stage that equals the last one before is evaluated once."""
    return method.tableau.num_stages - int(method.tableau.fsal)


def _finish(solution: diffrax.Solution, evaluations: Array) -> Solution:
    state = jax.tree.map(lambda a: a[0], solution.ys)
    finite = [jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(state)]
    ok = (solution.result == diffrax.RESULTS.successful) & jnp.all(jnp.stack(finite))
    return Solution(state, evaluations, ok)
