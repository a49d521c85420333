"""Graders for the exercises of the chapter "The bijector menu".

Each takes an attempt and returns one sentence: the first fault that it finds, or that all tests passed.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from gauss_flows.bijection import partition

PASSED = "All tests passed."


def grade_bijector(bijection):
    """Test a scalar bijection: finite, increasing, with the right log-slope and the right inverse.

    The tests are repeated after the parameters were moved, because a network may output any numbers.
    """
    if bijection.shape != () or bijection.cond_shape is not None:
        return "A function of one variable must have `shape = ()` and `cond_shape = None`."
    params, rest = partition(bijection)
    vector, unravel = ravel_pytree(params)
    if vector.size == 0:
        return "There are no parameters to train: store them as floating-point arrays."
    points = np.linspace(-6, 6, 121)
    for size in (0.0, 0.5, 2.0):
        step = size * np.cos(np.arange(vector.size))
        moved = eqx.combine(unravel(vector + step), rest)
        far_z, far_log_slope, log_slope, true_slope, back = map(np.asarray, _measured(moved, points))
        when = f"after {size} cos(0, 1, ...) was added to the parameters" if size else "with your parameters"
        if not (np.isfinite(far_z).all() and np.isfinite(far_log_slope).all()):
            return f"A value or a log-slope on [-30, 30] is not finite {when}."
        if not (np.diff(far_z) > 0).all():
            return f"The function is not increasing on [-30, 30] {when}."
        ratio = np.exp(log_slope) / true_slope
        if not np.allclose(ratio, 1, rtol=1e-8):
            return f"The slope is {ratio[0]:.3f} times the derivative at x = -6 {when}."
        if not np.allclose(back, points, atol=1e-8):
            return f"The inverse does not return to x {when}."
    return PASSED


@eqx.filter_jit
def _measured(bijection, points):
    """Values and log-slopes far out; near zero the log-slope, the derivative, and the round trip."""
    both = jax.vmap(bijection.transform_and_log_det)
    z, log_slope = both(points)
    true_slope = jax.vmap(jax.grad(bijection.transform))(jnp.asarray(points))
    return *both(5 * points), log_slope, true_slope, jax.vmap(bijection.inverse)(z)


def grade_intervals(intervals, kl):
    """Test the divergences of the trained splines, one for each interval [-M, M].

    Args:
        intervals: The values of M, shape (m,); 1 and 16 must be among them.
        kl: The divergences in nats, shape (m,).
    """
    intervals, kl = np.asarray(intervals), np.asarray(kl)
    if intervals.shape != kl.shape:
        return f"There must be one divergence per interval; got shapes {kl.shape} and {intervals.shape}."
    if not np.isfinite(kl).all():
        return "A divergence is not finite."
    if (kl[intervals == 1] < 1.79).any():
        return "The divergence for M = 1 is below its lower bound: are the points outside included?"
    if (kl < -1e-3).any() or (kl[intervals == 16] > 2).any():
        return "The divergences are wrong by log M: what is the slope of the spline after the rescaling?"
    if (kl[intervals >= 3] > 0.1).any():
        return "A divergence for M = 3 or more is above 0.1 nats: more training steps are needed."
    return PASSED
