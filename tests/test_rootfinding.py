"""Tests of ``gauss_flows.rootfinding``."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

import gauss_flows as gf
from gauss_flows import rootfinding
from gauss_flows.bijection import partition
from gauss_flows.rootfinding import implicit_root

pytestmark = pytest.mark.usefixtures("quick_compilation")


def _plain(f):
    return f


def _scanned(f):
    """Three values through a scan, each fed by the one before."""
    return lambda y, a: jax.lax.scan(lambda y, shift: (f(y + shift, a), None), y, jnp.arange(3.0))[0]


def _batched(f):
    """Of the shared a and of a batch of y, one derivative each."""
    return lambda y, a: jax.vmap(f, (0, None))(y * jnp.arange(1.0, 4.0), a).sum()


WRAPPED = {
    "plain": _plain,
    "scan": _scanned,
    "checkpoint in a scan": lambda f: _scanned(jax.checkpoint(f)),
    "vmap": _batched,
    "vmap of a scan": lambda f: _batched(_scanned(f)),
}

LATER = {"plain", "vmap", "checkpoint in a scan"}  # the others contain what is hard about these


@pytest.mark.parametrize(
    "wrap", [pytest.param(w, marks=[pytest.mark.nightly] if w in LATER else []) for w in WRAPPED]
)
def test_implicit_root_has_the_derivatives_of_the_closed_form_in_any_nesting(wrap):
    """``lax.custom_root`` raises for reverse over reverse in a scan, a ``custom_jvp`` gives wrong numbers."""
    root = lambda y, a: implicit_root(lambda x: a * x**3, y, lambda: jnp.cbrt(y / a))
    closed = lambda y, a: (y / a) ** (1 / 3)
    with jax.enable_x64(True):
        args = (jnp.array(5.0), jnp.array(2.0))
        for outer in (jax.jacrev, jax.jacfwd):
            for inner in (jax.jacrev, jax.jacfwd):
                second = lambda f, o=outer, i=inner: jax.jit(o(i(WRAPPED[wrap](f), (0, 1)), (0, 1)))(*args)
                np.testing.assert_allclose(second(root), second(closed), rtol=1e-12)
        third = lambda f: jax.jit(jax.grad(jax.grad(jax.grad(WRAPPED[wrap](f)))))(*args)
        np.testing.assert_allclose(third(root), third(closed), rtol=1e-12)


@pytest.mark.nightly
def test_second_derivatives_through_the_inverses_that_are_solved():
    """The gradient of a squared gradient, reverse over reverse, as score matching takes it."""
    with jax.enable_x64(True):
        keys = jr.split(jr.key(0), 2)
        residual = lambda key: gf.Residual(key, shape=(2,), nn_width=4, nn_depth=1)
        mixture = gf.MixtureGaussianCDF(2)
        layers = (
            gf.MaskedAutoregressive(keys[0], shape=(2,), bijector=mixture, nn_width=4, nn_depth=1),
            gf.Scan(eqx.filter_vmap(residual)(keys)),
        )
        for layer in layers:
            params, static = partition(layer)
            flat, back = ravel_pytree(params)

            def loss(flat, y, back=back, static=static):
                layer = eqx.combine(back(flat), static)
                total = lambda y: sum(jnp.sum(a) for a in layer.inverse_and_log_det(y))
                return jnp.square(jax.grad(total)(y)).sum()

            y, run = jnp.array([0.3, -0.7]), jax.jit(loss)
            direction = jr.normal(jr.key(1), flat.shape)
            by_params, by_y = jax.jit(jax.grad(loss, (0, 1)))(flat, y)
            step = 1e-6
            moved = [run(flat + s * step * direction, y) for s in (1, -1)]
            np.testing.assert_allclose(by_params @ direction, (moved[0] - moved[1]) / (2 * step), rtol=1e-5)
            moved = [run(flat, y + s * step) for s in (1, -1)]
            np.testing.assert_allclose(by_y.sum(), (moved[0] - moved[1]) / (2 * step), rtol=1e-5)


@pytest.mark.parametrize("start", [-0.9, 0.0, 0.999])
def test_solve_monotone_where_plain_newton_fails(start):
    """arctan from far away diverges under Newton; the bracket saves it."""
    with jax.enable_x64(True):
        f = lambda x: (jnp.arctan(50 * (x - 0.3)), 50 / (1 + (50 * (x - 0.3)) ** 2))
        one = jnp.ones(())
        root, steps = rootfinding.solve_monotone(
            f, -one, one, jnp.asarray(start), scale=one / 50, tolerance=1e-15 * one
        )
        assert abs(float(root) - 0.3) < 1e-14
        assert int(steps) < 30


def test_solve_monotone_on_a_closed_bracket_and_at_the_root():
    one = jnp.ones(())
    f = lambda x: (x - 1, one)
    for lower, upper, guess in ((one, one, one), (-one, 3 * one, one)):
        root, _ = rootfinding.solve_monotone(f, lower, upper, guess, scale=one, tolerance=0 * one)
        assert float(root) == 1.0


def test_implicit_root_differentiates_closed_over_values():
    with jax.enable_x64(True):

        def cube_root(y, a):
            solve = lambda: jnp.cbrt(y / a)
            return rootfinding.implicit_root(lambda x: a * x**3, y, solve)

        args = (jnp.array(5.0), jnp.array(2.0))
        check_grads(cube_root, args, order=3, modes=("rev",), rtol=1e-4, atol=1e-4)
