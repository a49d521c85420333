"""Graders for the exercises of the chapter "MAF and IAF"."""

import jax.numpy as jnp
import numpy as np

RANKS = np.array([3, 1, 5, 2, 4])
EARLIER = RANKS[:, None] > RANKS  # which coordinates each shift and log-scale depends on
SHIFT, LOG_SCALE = (EARLIER * np.random.default_rng(seed).normal(size=(5, 5)) for seed in (0, 1))
POINT = np.array([0.7, -1.1, 0.4, 1.3, -0.6])


def parameters_of(x):
    """Return the shifts and the log-scales of a small affine autoregressive layer, each of shape (5,)."""
    return 0.5 + 2 * SHIFT @ jnp.sin(x), jnp.tanh(0.3 + LOG_SCALE @ x)


def grade_sweeps(sweeps):
    """Return a comment on a function ``sweeps(parameters_of, z, k)``, judged rank by rank."""
    shift, log_scale = parameters_of(POINT)
    z = POINT * jnp.exp(log_scale) + shift
    by_rank = np.argsort(RANKS)
    first_shift, first_log_scale = parameters_of(jnp.zeros(5))
    mistakes = {
        "No sweep has been run.": jnp.zeros(5),
        "The scale has the wrong sign.": (z - first_shift) * jnp.exp(first_log_scale),
        "Subtract the shift before you divide by the scale.": z * jnp.exp(-first_log_scale) - first_shift,
    }
    for k in range(1, 6):
        attempt = np.asarray(sweeps(parameters_of, z, k))
        if attempt.shape != (5,) or not np.isfinite(attempt).all():
            return f"For k = {k} the result is not a finite array of shape (5,)."
        wrong = np.flatnonzero(np.abs(attempt - POINT)[by_rank] > 1e-10)
        if len(wrong) and wrong[0] < k:
            why = [text for text, value in mistakes.items() if np.allclose(attempt, value)]
            return " ".join([f"For k = {k} the coordinate of rank {wrong[0] + 1} is wrong.", *why])
        if not len(wrong) and k < 5:
            return f"For k = {k} every coordinate is right already. Do you run exactly k sweeps?"
    return "right"


def grade_zigzag(order):
    """Return a comment on an array of ranks that visits 4 × 4 pixels along the rows, back and forth."""
    order = np.asarray(order)
    if order.shape != (4, 4):
        return f"The shape must be (4, 4); it is {order.shape}."
    if sorted(order.ravel()) != list(range(1, 17)):
        return "The ranks must be the numbers from 1 to 16, each once."
    places = np.argwhere(order > 0)[np.argsort(order, axis=None)]
    distance = np.abs(np.diff(places, axis=0)).sum(axis=1)
    if distance.max() > 1:
        r = int(np.argmax(distance > 1)) + 1
        return f"The pixels of ranks {r} and {r + 1} are {distance[r - 1]} pixels apart, not one."
    if (order[0] != np.arange(1, 5)).any() or order[1].max() > 8:
        return "Consecutive pixels are neighbors, but the path does not follow the rows from the top left."
    return "right"
