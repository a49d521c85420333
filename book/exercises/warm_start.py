"""Graders of the exercises in the chapter ``warm_start``. Each returns a sentence about an attempt."""

import numpy as np


def grade_spacing_entropy(entropy):
    """Try ``entropy(x)``, an estimate from spacings, on normal and uniform samples."""
    x = np.random.default_rng(3).normal(size=20_000)
    value = entropy(x)
    if not np.isfinite(value):
        return "The result is not finite: is some width 0?"
    if abs(entropy(x + 5) - value) > 1e-6:
        return "A shift of the sample must not change the entropy."
    if abs(entropy(3 * x) - value - np.log(3)) > 1e-6:
        return "Multiplying the sample by 3 must add log 3: does the width enter the density?"
    if abs(entropy(np.sort(x)[::-1]) - value) > 1e-6:
        return "The order of the sample must not matter: sort it first."
    if abs(value - 0.5 * np.log(2 * np.pi * np.e)) > 0.1:
        return "The entropy of a normal sample is wrong: is the fraction right?"
    edge = np.random.default_rng(4).uniform(size=2000)
    if abs(entropy(edge)) > 0.06:
        return "The entropy of a uniform sample is wrong: which gaps exist at the ends?"
    return "right"


def grade_gains(gains, one_run):
    """Check the total gains of three runs per rotation against the gains per layer of one run."""
    for rotation, found in gains.items():
        if np.shape(found) != (3,):
            return f"{rotation}: three totals are needed, one per key."
        if np.ptp(found) == 0:
            return f"{rotation}: all three totals are equal. Did all runs use the same key?"
        if not np.min(found) > np.sum(one_run[:2]):
            return f"{rotation}: a total is too small. Is it the sum over all eight layers?"
    if np.array_equal(gains["random"], gains["pca"]):
        return "Both rotations have the same totals. Was `rotation=` passed on?"
    return "right"
