"""ODE solvers: order, control of the error, independence of batch mates, honest counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.core.errors import UserError
from jvdm.diffusion.solvers import ADAPTIVE_METHODS, FIXED_METHODS, SOLVERS, Adaptive, Fixed, largest_rms

RATE = 3.0
Y_0 = np.array([0.2, 0.5, 1.0])
NUM_STEPS = 4  # of the fixed solvers
ORDERS = {"heun": 2, "rk4": 4, "dopri5": 5, "tsit5": 5, "dopri8": 8}
calls = []  # times at which the field was evaluated


def exact(y_0, t):
    """The state of `program` without a kick, from time 0."""
    y = y_0 / (1.0 + y_0 * np.sin(RATE * t))
    return y, np.mean(np.log(y / y_0))


@functools.cache
def program(name, method):
    """(tolerance, state, start, end, kick) -> Solution, one program for all tests of a method.

    The state is an array y and a scalar, mean log y, by a nonlinear field. From t = 0.7 on there is a kick.
    """

    def solve(tolerance, state, start, end, kick):
        def field(t, state):
            jax.debug.callback(lambda t: calls.append(float(t)), t)
            y, _ = state
            slope = -RATE * jnp.cos(RATE * t) * y**2 + jnp.where(t > 0.7, kick, 0.0) * y
            return slope, jnp.mean(slope / y)

        if name == "fixed":
            return Fixed(method=method, num_steps=NUM_STEPS)(field, state, start, end)
        solver = Adaptive(method=method)
        object.__setattr__(solver, "tolerance", tolerance)  # traced, so that it needs no program of its own
        return solver(field, state, start, end)

    return jax.jit(solve)


def solve(name, method, *, tolerance=1e-5, state=(Y_0, 0.0), start=0.0, end=1.0, kick=0.0):
    calls.clear()
    state = tuple(jnp.asarray(a, jnp.float64) for a in state)
    solution = program(name, method)(
        jnp.float64(tolerance), state, jnp.float64(start), jnp.float64(end), jnp.float64(kick)
    )
    jax.block_until_ready(solution)
    jax.effects_barrier()
    return solution


def error(solution, end):
    """The largest, and the root mean square of y's."""
    y, integral = exact(Y_0, end)
    return max(np.abs(solution.state[0] - y).max(), abs(float(solution.state[1]) - integral))


def check_counts(name, method):
    """Evaluations reported are those that happened."""
    for options in ({"tolerance": 1e-2}, {"tolerance": 1e-7}, {"end": -0.3}, {"kick": -30.0}):
        solution = solve(name, method, **options)
        assert bool(solution.ok)
        assert int(solution.evaluations) == len(calls) > 7, options
    if name == "adaptive":
        # The last one's field jumps at 0.7: a step is rejected, and its evaluations are counted too.
        assert np.any(np.diff(calls) < -0.01)


def check_not_ok(name, method):
    """Numbers that are not finite are reported."""
    for kick in (np.nan, np.inf, 1e200):
        assert not bool(solve(name, method, kick=kick).ok)
        assert bool(solve(name, method, kick=kick, end=0.6).ok), "the kick comes later"


# A method's tests share its program: compiling it is all the time they take.
@pytest.mark.parametrize("method", FIXED_METHODS)
def test_fixed(method, x64):
    """Order: over ever shorter intervals, the error falls as their length to the order plus one."""
    check_counts("fixed", method)
    check_not_ok("fixed", method)
    order = ORDERS[method]
    # Short enough for the slope to be the method's, and long enough to rise above rounding.
    lengths = np.geomspace(0.02, 0.08, 5) * {2: 0.25, 4: 0.5, 5: 1.0, 8: 8.0}[order]
    errors = []
    for length in lengths:
        y, integral = exact(Y_0, 0.1)
        solution = solve("fixed", method, state=(y, integral), start=0.1, end=0.1 + length)
        assert bool(solution.ok)
        errors.append(error(solution, 0.1 + length))
    assert min(errors) > 5e-15
    slope = np.polyfit(np.log(lengths), np.log(errors), 1)[0]
    # The next order's share is that of a step in units of the field's time scale, 1 / RATE. Order 8 rises
    # above rounding only in steps that are large in that unit.
    assert abs(slope - (order + 1)) < (1.0 if order == 8 else 0.3)


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.long] * (m != "dopri5")) for m in ADAPTIVE_METHODS]
)
def test_adaptive(method, x64):
    """The tolerance controls the error."""
    check_counts("adaptive", method)
    check_not_ok("adaptive", method)
    tolerances = [1e-3, 1e-5, 1e-7, 1e-9]
    solutions = [solve("adaptive", method, tolerance=tolerance) for tolerance in tolerances]
    assert all(bool(s.ok) for s in solutions)
    errors = np.array([error(s, 1.0) for s in solutions])
    # A tolerance is of a step and times 1 + |y|, here 2. y returns to nearly where it was, and an error early
    # on is magnified by (y / y_early)^2 <= 4. For some ten steps: within 2 * 4 * 10.
    assert np.all(errors < 80 * np.array(tolerances))
    # Order 5 follows the tolerance a little slower than proportionally; a factor 100 must show.
    assert np.all(errors[1:] < 0.1 * errors[:-1])
    assert np.all(np.diff([int(s.evaluations) for s in solutions]) > 0)


def test_the_worst_field_controls_the_step():
    """A field of one number counts as much as an image: a mean over all entries would drown it."""
    assert float(largest_rms((jnp.full((64, 64), 1e-3), jnp.full((), 2.0)))) == 2.0
    assert float(largest_rms((jnp.array([3.0, -4.0]), jnp.zeros(5)))) == np.sqrt(np.float32(12.5))


def test_a_result_does_not_depend_on_batch_mates():
    """A stiff mate needs many more steps, and nobody else sees them."""
    y_0 = jnp.asarray(np.random.default_rng(0).uniform(0.2, 1.0, (4, 3)), jnp.float32)
    rates = jnp.array([1.0, 400.0, 2.0, 0.0])

    @jax.jit
    @jax.vmap
    def batched(y, rate):
        def field(t, state):
            return -rate * (state[0] - jnp.cos(t)), jnp.sum(state[0])

        return Adaptive(tolerance=1e-4)(field, (y, jnp.zeros(())), 0.0, 1.0)

    whole = batched(y_0, rates)
    assert np.all(whole.ok)
    assert whole.evaluations[1] > 4 * max(whole.evaluations[0], whole.evaluations[2])
    for i in range(4):
        for mate in (1, 3):
            # Four examples always, so that it is the same program, and equal to the last bit.
            chosen = jnp.array([i, mate, mate, mate])
            other = batched(y_0[chosen], rates[chosen])
            for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(other), strict=True):
                np.testing.assert_array_equal(a[i], b[0])


def test_too_few_steps_are_not_ok():
    def field(t, y):
        return jnp.cos(30.0 * t) * y

    solution = jax.jit(lambda y: Adaptive(max_steps=3, tolerance=1e-7)(field, y, 0.0, 1.0))(jnp.ones(2))
    assert not bool(solution.ok)
    # They are reported as they were: one, and six for each of three steps.
    assert int(solution.evaluations) == 19


@pytest.mark.parametrize(("name", "tolerance", "length"), [("adaptive", 1e-9, 1.0), ("fixed", 0.0, 0.05)])
def test_backwards_inverts_forwards(name, tolerance, length, x64):
    forwards = solve(name, "dopri5", tolerance=tolerance, start=1.0 - length, end=1.0)
    backwards = solve(name, "dopri5", tolerance=tolerance, state=forwards.state, start=1.0, end=1.0 - length)
    assert bool(backwards.ok)
    # Either way the error is the solver's: some ten tolerances, or (RATE * 0.0125)^5 = 7e-8 a unit of time.
    np.testing.assert_allclose(backwards.state[0], Y_0, atol=2e-8)
    assert abs(float(backwards.state[1])) < 2e-8
    assert np.abs(forwards.state[0] - Y_0).min() > 1e-3, "the way out must lead somewhere"


def test_finer_is_finer(x64):
    coarse = Adaptive(tolerance=1e-4, max_steps=100)
    # Order 5 needs 10^(1/5) = 1.6 times the steps.
    assert coarse.finer() == Adaptive(tolerance=0.1 * 1e-4, max_steps=400)
    assert Fixed(method="heun", num_steps=7).finer() == Fixed(method="heun", num_steps=14)
    assert coarse.finer().text() == "dopri5, tolerance 1e-05"
    errors = [
        error(solve("adaptive", "dopri5", tolerance=s.tolerance), 1.0) for s in (coarse, coarse.finer())
    ]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adaptive", {"method": "dopri"}, "unknown method 'dopri'.*choices: dopri5, dopri8, tsit5"),
        ("adaptive", {"method": "rk4"}, "choices: dopri5, dopri8, tsit5"),
        ("adaptive", {"tolerance": 0.0}, "between 0 and 1"),
        ("adaptive", {"tolerance": 1.0}, "between 0 and 1"),
        ("adaptive", {"max_steps": 0}, "give 1 or more"),
        ("fixed", {"method": "euler"}, "choices: dopri5, dopri8, heun, rk4, tsit5"),
        ("fixed", {"num_steps": 0}, "give 1 or more"),
        ("scipy", {}, "choices: adaptive, fixed"),
    ],
)
def test_errors_are_one_line_with_the_choices(name, options, message):
    with pytest.raises(UserError, match=message) as raised:
        SOLVERS.build({"name": name, **options})
    assert "\n" not in str(raised.value)
