"""Graders of the exercises in the chapter ``diagonal_vs_coupling``."""

import numpy as np


def grade_angle(find_angle):
    """Return a comment on ``find_angle(x)``, tried on rotated samples with independent coordinates."""
    for seed, degrees in enumerate((12, 51)):
        found = np.asarray(find_angle(_rotated_sample(seed, degrees)))
        if found.shape != () or not np.isfinite(found):
            return "The result must be one finite number, an angle in degrees."
        if _distance(found, degrees) <= 3:
            continue
        if _distance(found, -degrees) <= 3:
            return "The angle has the wrong sign: `x @ rotation(angle)` rotates `x` by minus the angle."
        if _distance(found, degrees + 45) <= 6:
            return "At this angle the coordinates are closest to normal, not farthest from it."
        return "The angle does not fit this sample. Does the sum include both rotated coordinates?"
    return "right"


def _rotated_sample(seed, degrees):
    """Return 20,000 points with two independent coordinates of variance 1, rotated by an angle."""
    rng = np.random.default_rng(seed)
    first = rng.choice([-1.0, 1.0], 20_000)
    second = rng.choice([-1.8, 0.0, 1.2], 20_000, p=[0.2, 0.4, 0.4])
    x = np.stack([first, second], axis=1) + 0.3 * rng.normal(size=(20_000, 2))
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return x @ np.array([[cos, sin], [-sin, cos]])


def _distance(one, other):
    """Return the distance of two angles in degrees, where a rotation by 90 degrees changes nothing."""
    return abs((one - other + 45) % 90 - 45)
