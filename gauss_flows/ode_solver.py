"""Solvers of ordinary differential equations: fixed steps in a loop, and those of diffrax by name."""

from collections.abc import Callable
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from gauss_flows.validate import expect_whole

FixedStep = Literal["euler", "heun", "rk4"]

ORDERS = {"euler": 1, "heun": 2, "rk4": 4}  # the error falls as this power of the step; also its evaluations


_BEND = 0.6


def _time(s):
    """The time at which a clock from 0 to 1 stands: its steps are finer near 1, where data are sharp.

    With the exact velocities of the package's mixtures, 32 steps of "rk4" leave between a half and a tenth of
    the error in log p that equal steps of time leave.
    """
    return s * (1 + _BEND * (1 - s))


def _pace(s):
    """The derivative of the time by the clock."""
    return 1 + _BEND * (1 - 2 * s)


def _moved(state, *changes):
    """The state plus multiples of slopes, given as pairs (factor, slope)."""
    for factor, slope in changes:
        state = jax.tree.map(lambda s, d, factor=factor: s + factor * d, state, slope)
    return state


def _euler(field, t, h, state):
    return _moved(state, (h, field(t, state)))


def _heun(field, t, h, state):
    first = field(t, state)
    second = field(t + h, _moved(state, (h, first)))
    return _moved(state, (h / 2, first), (h / 2, second))


def _rk4(field, t, h, state):
    first = field(t, state)
    second = field(t + h / 2, _moved(state, (h / 2, first)))
    third = field(t + h / 2, _moved(state, (h / 2, second)))
    fourth = field(t + h, _moved(state, (h, third)))
    return _moved(state, (h / 6, first), (h / 3, second), (h / 3, third), (h / 6, fourth))


_STEPS = {"euler": _euler, "heun": _heun, "rk4": _rk4}


class ODESolver(eqx.Module):
    r"""How to solve :math:`dx/dt = f(t, x)` for t in [0, 1]: by a fixed number of steps, or by diffrax.

    The steps are not quite equal: from t = 0 to t = 1 they shrink, by a factor of 4 from first to last.

    Args:
        method: "euler", "heun" or "rk4" (one, two and four evaluations of f per step), or the name of a
            solver of diffrax that needs no arguments, such as "Tsit5" or "Dopri5".
        steps: Number of steps of a fixed method, at least 1.
        tolerance: Of diffrax's step size controller, relative and absolute, positive. It bounds the error of
            each step, and not the error of the result.

    Raises:
        ValueError: If an argument does not fit, or diffrax is needed and not installed.

    Source:
        Hairer, Nørsett, Wanner, "Solving ordinary differential equations I" (1993), section II.1.
    """

    method: str = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    tolerance: float = eqx.field(static=True)

    def __init__(self, method: str = "rk4", steps: int = 32, tolerance: float = 1e-6):
        if method not in _STEPS:
            diffrax_solver(method)
        positive = isinstance(tolerance, int | float) and 0 < tolerance < 1
        if not positive:
            raise ValueError(f"`tolerance` must lie between 0 and 1; got {tolerance!r}.")
        self.method, self.tolerance = method, float(tolerance)
        self.steps = expect_whole("steps", steps, 1)

    @property
    def evaluations(self) -> int | None:
        """How often the field is evaluated from end to end; None where the solver chooses its steps."""
        return self.steps * ORDERS[self.method] if self.method in ORDERS else None

    @property
    def order(self) -> int | None:
        """The power of the step with which the error falls; None where the solver chooses its steps."""
        return ORDERS.get(self.method)

    def refined(self) -> "ODESolver":
        """The same method with twice the steps, or with a hundredth of the tolerance."""
        return ODESolver(self.method, 2 * self.steps, self.tolerance / 100)

    def solve(
        self, field: Callable[[PyTree, PyTree], PyTree], state: PyTree, start: float, stop: float
    ) -> PyTree:
        """Return the state at ``stop``; the gradient keeps one state per step and computes the rest again.

        Args:
            field: f(t, state), a tree like the state.
            state: The state at ``start``, a tree of arrays of one floating-point type.
            start: Where to begin; it may lie after ``stop``.
            stop: Where to end.
        """
        if self.method not in _STEPS:
            return _solve_by_diffrax(self, field, state, start, stop)
        dtype = jax.tree.leaves(state)[0].dtype
        h = (stop - start) / self.steps
        step = _STEPS[self.method]
        # In steps of a clock s that runs slower towards t = 1: there dx/ds = (dt/ds) f(t(s), x).
        in_clock = lambda s, state: jax.tree.map(lambda slope: _pace(s) * slope, field(_time(s), state))
        advance = lambda state, i: step(in_clock, start + h * i, jnp.asarray(h, dtype), state)
        advance = jax.checkpoint(advance, prevent_cse=False)  # a scan keeps XLA from merging the two runs
        return lax.scan(
            lambda state, i: (advance(state, i), None), state, jnp.arange(self.steps, dtype=dtype)
        )[0]


def diffrax_solver(name: str):
    """Return a solver of diffrax, or say why there is none."""
    try:
        import diffrax
    except ImportError as error:
        raise ValueError(
            f"`solver` must be one of {get_args(FixedStep)} where diffrax is not installed (pip install "
            f"diffrax); got {name!r}."
        ) from error
    solver = getattr(diffrax, name, None) if isinstance(name, str) else None
    if not (isinstance(solver, type) and issubclass(solver, diffrax.AbstractAdaptiveSolver)):
        raise ValueError(
            f"`solver` must be one of {get_args(FixedStep)} or the name of an adaptive solver of diffrax, "
            f"such as 'Tsit5'; got {name!r}."
        )
    return solver


def _solve_by_diffrax(solver, field, state, start, stop):
    import diffrax

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, state, _: field(t, state)),
        diffrax_solver(solver.method)(),
        start,
        stop,
        None,
        state,
        stepsize_controller=diffrax.PIDController(rtol=solver.tolerance, atol=solver.tolerance),
        max_steps=4096,
        throw=False,  # one row that cannot be solved must not end the call for all others
    )
    solved = solution.result == diffrax.RESULTS.successful
    return jax.tree.map(lambda a: jnp.where(solved, a[0], jnp.nan), solution.ys)
