"""Grader for the exercise of the chapter "Flow matching"."""

import math

import numpy as np


def _velocity(t, x):
    """A velocity that differs in every time and coordinate; t of shape (n,), x of shape (n, D)."""
    return np.sin(x) + t[:, None] * np.arange(1, x.shape[1] + 1)


def _loss(t, x0, x1, point="right", speed="right", mean="right"):
    """The loss with one of the common mistakes, or without."""
    weight = t[:, None]
    xt = weight * x0 + (1 - weight) * x1 if point == "reversed" else (1 - weight) * x0 + weight * x1
    target = {"right": x1 - x0, "reversed": x0 - x1, "data": x1}[speed]
    squares = (_velocity(t, xt) - target) ** 2
    return squares.mean() if mean == "coordinates" else squares.sum(axis=1).mean()


def grade_loss(loss):
    """Return a comment on ``loss(v, t, x0, x1)``, judged by its value for one small batch."""
    rng = np.random.default_rng(0)
    t, (x0, x1) = rng.uniform(size=5), rng.normal(size=(2, 5, 3))
    found = float(loss(_velocity, t, x0, x1))
    comments = (
        (_loss(t, x0, x1), "right"),
        (_loss(t, x0, x1, point="reversed"), "at t = 0 the point must be the noise, and at t = 1 the data"),
        (_loss(t, x0, x1, speed="reversed"), "the velocity of the line points from the noise to the data"),
        (_loss(t, x0, x1, speed="data"), "the network must output a velocity, not the data point"),
        (_loss(t, x0, x1, mean="coordinates"), "sum over the coordinates, and average over the pairs only"),
    )
    for value, comment in comments:
        if math.isclose(found, value, rel_tol=1e-6):
            return comment
    return "not yet right, and not one of the common mistakes"
