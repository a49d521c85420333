"""Grader for the exercise of the chapter "Variational inference"."""

import numpy as np


def grade_log_weights(log_weights):
    """Return a comment on ``log_weights(log_p, log_q)``, judged by small and by extreme densities."""
    rng = np.random.default_rng(0)
    log_p, log_q = rng.normal(size=(2, 6))
    wanted = log_p - log_q - np.log(np.exp(log_p - log_q).sum())
    found = np.asarray(log_weights(log_p, log_q), float)
    if found.shape != (6,):
        return f"return one number per sample, shape (6,) here, not {found.shape}"
    if np.allclose(found, log_p - log_q):
        return "the weights must add up to 1"
    if np.allclose(found, -wanted - np.log(np.exp(-wanted).sum())):
        return "the density of the posterior is in the numerator"
    if np.allclose(np.exp(wanted), found):
        return "return the logarithms of the weights"
    if not np.allclose(found, wanted):
        return "not yet right, and not one of the common mistakes"
    for offset in (-1e4, 1e4):
        if not np.allclose(log_weights(log_p + offset, log_q), wanted):
            return (
                "right for small numbers, but exp overflows or underflows: subtract the largest ratio first"
            )
    return "right"
