"""Derivatives of inverses that are solved: any order, any nesting of forward and reverse mode."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from paramax import unwrap

import gauss_flows as gf
from gauss_flows import numerics as nm
from gauss_flows.base import split_parameters

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
    root = lambda y, a: nm.implicit_root(lambda x: a * x**3, y, lambda: jnp.cbrt(y / a))
    closed = lambda y, a: (y / a) ** (1 / 3)
    with jax.enable_x64(True):
        args = (jnp.array(5.0), jnp.array(2.0))
        for outer in (jax.jacrev, jax.jacfwd):
            for inner in (jax.jacrev, jax.jacfwd):
                second = lambda f, o=outer, i=inner: jax.jit(o(i(WRAPPED[wrap](f), (0, 1)), (0, 1)))(*args)
                np.testing.assert_allclose(second(root), second(closed), rtol=1e-12)
        third = lambda f: jax.jit(jax.grad(jax.grad(jax.grad(WRAPPED[wrap](f)))))(*args)
        np.testing.assert_allclose(third(root), third(closed), rtol=1e-12)


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
            params, static = split_parameters(layer)
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


def test_the_inverse_of_one_component_has_the_derivatives_of_an_affine_map():
    """The map x = m + s z has the mixed derivative 1 in z and s, and no other of second order."""
    with jax.enable_x64(True):
        bijector = gf.MixtureGaussianCDF(1, means=[0.5], scales=[2.0])
        scaled = lambda z, m, s: eqx.tree_at(
            lambda b: (b.means, b.log_scales), unwrap(bijector), (m[None], jnp.log(s)[None])
        ).inverse(z)
        args = (jnp.array(1.5), jnp.array(0.5), jnp.array(2.0))
        np.testing.assert_allclose(jax.jit(scaled)(*args), 3.5, rtol=1e-13)
        hessian = jax.jit(jax.jacrev(jax.jacrev(scaled, (0, 1, 2)), (0, 1, 2)))(*args)
        np.testing.assert_allclose(hessian, [[0, 0, 1], [0, 0, 0], [1, 0, 0]], atol=1e-9)
