"""Graders for the exercises of the chapter "The coupling pattern"."""

import numpy as np

FACTORS = (1.0, 1e3, 1e6, 1e9)


def grade_condition(measured):
    """Return a comment on ``measured[factor] = (log_det, entry, error)`` for the four factors."""
    missing = [factor for factor in FACTORS if factor not in measured]
    if missing:
        return f"`measured` has no entry for the factor {missing[0]:g}."
    rows = np.array([measured[factor] for factor in FACTORS], float)
    if rows.shape != (4, 3) or not np.isfinite(rows).all():
        return "Each entry of `measured` must hold three finite numbers."
    log_det, entry, error = rows.T
    if np.abs(log_det).max() > 1e-9:
        return "The first number does not belong to an additive layer. Does the layer copy x_A?"
    if np.ptp(entry) == 0:
        return "The factor has no effect. Is the output of the network multiplied by it?"
    if (entry / entry[0] / FACTORS > 2).any():
        return "The second number grows faster than the factor. Multiply the output of the network only once."
    if not 1e-9 < error[-1] < 1e-3:
        return "The third number is not the difference between x and the result of a round trip."
    return "right"
