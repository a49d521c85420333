"""Graders of the exercises in the chapter ``equivalence``. Each returns a sentence about an attempt."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import gauss_flows as gf


def grade_constant(make_constant):
    """Try ``make_constant(coupling, x)`` on an affine coupling of four coordinates."""
    mask = gf.masks.alternating((4,))
    x = jr.normal(jr.key(3), (500, 4))
    coupling = gf.AffineCoupling(jr.key(8), (4,), mask=mask, nn_width=16)
    changed = make_constant(coupling, x)
    expected = jax.vmap(coupling.conditioner)(x[:, mask]).mean(axis=0)
    outputs = jax.vmap(changed.conditioner)(x[:, mask])
    if not bool(jnp.isfinite(outputs).all()):
        return "The output is not finite."
    if float(jnp.ptp(outputs, axis=0).max()) > 1e-14:
        return "The output still depends on the passive coordinates: look at the last weight matrix."
    if float(jnp.abs(outputs[0] - expected).max()) > 1e-12:
        return "The output is constant, but it is not the mean: look at the last bias."
    return "right"


def grade_gradient(w_gradient):
    """Try ``w_gradient(z, h)`` on points with correlation 0.8 and tanh features."""
    noise = np.asarray(jr.normal(jr.key(0), (4000, 2)))
    z = 0.8 * noise[:, 0] + 0.6 * noise[:, 1]
    h = np.tanh(noise[:, :1] * np.linspace(-3, 3, 16))
    expected = np.stack([z @ h, (z**2 - 1) @ h]) / len(z)
    got = np.asarray(w_gradient(jnp.asarray(z), jnp.asarray(h)))
    near = lambda a, b: bool(np.abs(a - b).max() < 1e-10)
    if got.shape != expected.shape:
        return f"The shape is {got.shape} and must be {expected.shape}: one row per parameter."
    if near(got, expected):
        return "right"
    if near(got / len(z), expected):
        return "This is the sum over the points, and the mean is needed."
    if near(got[0], expected[0]):
        return "The row of the log-scale is wrong: check the derivative of the loss with respect to it."
    return "The row of the shift is wrong: check the derivative of the loss with respect to it."
