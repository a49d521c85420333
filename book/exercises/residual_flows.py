"""Graders for the exercises of the chapter "Residual flows"."""

import math

import numpy as np


def grade_roulette(roulette):
    """Return a comment on ``roulette(powers, count, rho)``, judged by its exact mean for a 1 × 1 matrix."""
    s, rho = -0.6, 0.7
    counts = np.arange(1, 200)
    chances = rho ** (counts - 1) * (1 - rho)
    draws = np.array([roulette(s**counts, count, rho) for count in counts])
    mean = float((chances * draws).sum())
    comments = (
        (math.log1p(s), "right"),
        (-math.log1p(s), "the sign is wrong"),
        (s / (1 + s), "the factor 1/k is missing: this is the series of the gradient"),
        (math.log1p(s * rho) / rho, "the weight 1/p_k is missing: the estimate is biased"),
    )
    for value, comment in comments:
        if math.isclose(mean, value, rel_tol=1e-6):
            return comment
    return "not yet right, and not one of the common mistakes"


def grade_variance(variance):
    """Return a comment on ``variance(rho, kappa)``, judged by one value."""
    found = float(variance(0.7, 0.5))
    comments = (
        (0.0196441, "right"),
        (0.5000972, "this is the mean of the square: subtract the squared mean"),
        (1.1865375, "the probability 1 - rho of the stop is missing"),
        (-0.130385, "K = m needs m - 1 decisions to go on, not m"),
        (0.0062400, "the terms are not divided by their probability p_k"),
        (0.1666667, "the terms are not divided by k"),
        (0.0045406, "the terms alternate: with J = -kappa all have the same sign"),
        (0.0654805, "this is the cost: return the variance alone"),
        (0.1401576, "this is the standard deviation: square it"),
    )
    for value, comment in comments:
        if math.isclose(found, value, rel_tol=1e-4):
            return comment
    return "not yet right, and not one of the common mistakes"
