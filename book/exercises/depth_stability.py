"""Graders for the exercises of the chapter "Depth and stability"."""

import jax.numpy as jnp
import numpy as np

from experiments.common import read_table

POINTS = 3000  # training points behind the stored table


def grade_step(step):
    """Return a comment on a function that maps a gradient to Adam's first step at a learning rate of 0.01."""
    gradient = jnp.array([0.5, -2.0])
    ratio = np.asarray(step(gradient) / (-0.01 * jnp.sign(gradient)))
    if not abs(ratio[0] / ratio[1] - 1) < 1e-4:
        return "The step depends on the size of the gradient. Take the square root of the second moment."
    comments = {
        1.0: "right",
        -1.0: "The sign is wrong. This step increases the loss.",
        10**0.5: "Neither moment has a bias correction.",
        1000**0.5: "The second moment has no bias correction.",
        0.1: "The first moment has no bias correction.",
    }
    found = [text for value, text in comments.items() if abs(ratio[0] / value - 1) < 1e-4]
    return found[0] if found else f"Not yet right. The step is {ratio[0]:.2g} times the right one."


def grade_effective(numbers):
    """Return a comment on the effective numbers of parameters, one per depth in increasing order."""
    table, _ = read_table("depth_stability/depth.csv")
    layers, train, test = (table[name].astype(float) for name in ("layers", "train", "test"))
    depths = np.unique(layers)
    if np.shape(numbers) != depths.shape:
        return f"Expected {len(depths)} numbers, one per depth."
    gaps = np.array([np.median((test - train)[layers == depth]) for depth in depths])
    ratio = np.median(np.asarray(numbers) / (POINTS * gaps))
    comments = {
        1.0: "right",
        -1.0: "The sign is wrong. The gap on fresh points is the larger one.",
        2.0: "The difference of the two gaps already contains both halves.",
        10.0: "The table was made with 3,000 training points.",
        1 / POINTS: "This is the difference in nats. Multiply it by the number of points.",
    }
    found = [text for value, text in comments.items() if abs(ratio / value - 1) < 0.2]
    return found[0] if found else f"Not yet right. The numbers are {ratio:.1g} times the right ones."
