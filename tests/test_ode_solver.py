"""Tests of ``gauss_flows.ode_solver``."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gauss_flows.ode_solver import ORDERS, ODESolver

pytestmark = pytest.mark.usefixtures("quick_compilation")

TURN = jnp.array([[0.0, -3.0], [3.0, 0.0]])


def field(t, x):
    """A rotation whose speed depends on the time, so that its solution is known."""
    return 2 * t * TURN.astype(x.dtype) @ x


def solution(x, start, stop):
    """The rotation by 3 (stop² - start²)."""
    angle = 3 * (stop**2 - start**2)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.asarray(x)


def error(method, steps, start=0.0, stop=1.0):
    with jax.enable_x64():
        x = jnp.array([1.0, 0.5])
        found = jax.jit(lambda x: ODESolver(method, steps).solve(field, x, start, stop))(x)
        return float(np.abs(np.asarray(found) - solution(x, start, stop)).max())


@pytest.mark.parametrize("method", ORDERS)
def test_the_error_falls_as_the_power_of_the_step_that_is_promised(method):
    steps = np.array([32, 64, 128, 256])
    slope = np.polyfit(np.log(steps), np.log([error(method, n) for n in steps.tolist()]), 1)[0]
    assert abs(-slope - ORDERS[method]) <= 0.2


@pytest.mark.parametrize("method", ORDERS)
def test_the_way_back_is_solved_as_well(method):
    assert error(method, 256, 1.0, 0.0) <= 2 * error(method, 256) + 1e-12


def test_diffrax_solves_the_same_equation():
    with jax.enable_x64():
        x = jnp.array([1.0, 0.5])
        coarse, fine = (ODESolver("Tsit5", tolerance=tol) for tol in (1e-4, 1e-10))
        errors = [
            float(
                np.abs(
                    np.asarray(jax.jit(lambda x, s=s: s.solve(field, x, 0.0, 1.0))(x)) - solution(x, 0, 1)
                ).max()
            )
            for s in (coarse, fine)
        ]
    assert errors[1] <= 1e-8 <= errors[0] <= 1e-2
    assert (fine.order, fine.evaluations) == (None, None)


def test_refining_doubles_the_steps_and_tightens_the_tolerance():
    finer = ODESolver("heun", 8, 1e-4).refined()
    assert (finer.steps, finer.tolerance, finer.evaluations, finer.order) == (16, 1e-6, 32, 2)


@pytest.mark.parametrize("method", ORDERS)
def test_derivatives_pass_through_the_steps(method):
    with jax.enable_x64():
        solver = ODESolver(method, 8)
        end = lambda speed: solver.solve(
            lambda t, x: speed * field(t, x), jnp.array([1.0, 0.5]), 0.0, 1.0
        ).sum()
        slope = jax.jit(jax.grad(end))(1.0)
        quotient = (end(1 + 1e-5) - end(1 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, quotient, rtol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rk5",), "`solver` must be one of .*or the name of an adaptive solver of diffrax.*'rk5'"),
        (("ODETerm",), "`solver` must be one of"),
        ((4,), "`solver` must be one of"),
        (("rk4", 0), "`steps` must be a whole number of at least 1"),
        (("rk4", -3), "`steps` must be a whole number of at least 1; got -3"),
        (("rk4", 2.5), "`steps` must be a whole number"),
        (("Tsit5", 32, 0.0), "`tolerance` must lie between 0 and 1"),
        (("Tsit5", 32, "small"), "`tolerance` must lie between 0 and 1"),
    ],
)
def test_solver_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        ODESolver(*arguments)


def test_a_missing_diffrax_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ValueError, match="where diffrax is not installed"):
        ODESolver("Tsit5")
    assert ODESolver("rk4").order == 4
