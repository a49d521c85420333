"""Grader for the exercise of the chapter "Continuous flows"."""

import math

import numpy as np

STEPS = 5


def _answer(x, times, direction=-1, sign=-1, width=1 / STEPS):
    """The log-density by Euler steps for the velocity a(t) x with a(t) = 1/2 + t, from its closed form."""
    slopes = 0.5 + times
    z = x * np.prod(1 + direction * slopes / STEPS)
    log_base = -0.5 * (z @ z) - 0.5 * x.size * math.log(2 * math.pi)
    return log_base + sign * width * x.size * slopes.sum()


def grade_log_prob(log_prob):
    """Return a comment on ``log_prob(v, trace, x, N)``, judged by one value for a linear velocity."""
    x = np.array([0.6, -0.2, 0.4])
    found = float(log_prob(lambda t, x: (0.5 + t) * x, lambda t, x: (0.5 + t) * x.size, x, STEPS))
    k = np.arange(STEPS)
    late, early = 1 - k / STEPS, k / STEPS
    constant = 0.5 * x.size * math.log(2 * math.pi)
    comments = (
        (_answer(x, late), "right"),
        (
            _answer(x, late, sign=1),
            "the sign of the integral is wrong: from t = 1 to t = 0 each step is -1/N",
        ),
        (_answer(x, late, width=1), "the integral lacks the factor 1/N"),
        (_answer(x, late) + constant, "the constant of the normal density is missing"),
        (_answer(x, early, direction=1), "this moves x forward in time: x belongs to t = 1"),
        (_answer(x, early, direction=1, sign=1), "this moves x forward in time: x belongs to t = 1"),
        (_answer(x, early), "a step from t to t - 1/N takes the velocity at t, its start; the first t is 1"),
    )
    for value, comment in comments:
        if math.isclose(found, value, rel_tol=1e-6):
            return comment
    return "not yet right, and not one of the common mistakes"
