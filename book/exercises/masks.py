"""Graders of the exercises in the chapter ``masks``. Each returns a sentence about an attempt."""

import numpy as np


def grade_rows(make):
    """Try ``make(height, width, channels=None)``, which should make every even row passive."""
    for sizes in ((4, 4), (5, 3), (2, 4, 3)):
        mask, call = make(*sizes), f"rows{sizes}"
        if not isinstance(mask, np.ndarray) or mask.dtype != bool:
            kind = getattr(mask, "dtype", type(mask).__name__)
            return f"{call} must be a boolean NumPy array; it is {kind}."
        if mask.shape != sizes:
            return f"{call} must have shape {sizes}; it has {mask.shape}."
        if not all(row.all() or not row.any() for row in mask):
            return f"{call}: every row must be passive or active as a whole."
        wrong = [i for i, row in enumerate(mask) if row.all() != (i % 2 == 0)]
        if wrong:
            return f"{call}: row {wrong[0]} has the wrong role."
    return "right"


def grade_counts(layers_of):
    """Look at ``layers_of[D]``, the numbers of layers of many draws."""
    for dim, found in layers_of.items():
        if np.ptp(found) == 0 and found[0] == 3:
            return f"D = {dim}: always three layers. Are the masks random, or one mask and its flip?"
        if np.ptp(found) == 0:
            return f"D = {dim}: all draws are equal. Does every draw have its own key?"
        if np.median(found) < 1.5 * np.log2(dim):
            return f"D = {dim}: too few layers. Does every output depend on every input by then?"
    return "right"


def grade_gain(gain):
    """Try ``gain(log_p)``, bits per pixel gained by averaging 64 draws, on invented densities."""
    log_p = np.full((64, 10), 100.0)  # ten images, and all draws are equal
    if abs(gain(log_p) - 6 / 64) < 1e-9:
        return "Equal draws gain 6 bits per image: is the sum divided by the number of draws?"
    if not abs(gain(log_p)) < 1e-9:
        return "Equal draws must gain nothing."
    log_p[::2] += np.log(3)  # every other draw has three times the density
    ratio = gain(log_p) / 0.00324248
    mistakes = {
        1: "right",
        -1: "The sign is wrong.",
        64: "The unit is bits per image; it should be bits per pixel.",
        np.log(2): "The unit is nats; it should be bits.",
        np.log(3) / np.log(4 / 3): "This is the largest draw, not the average.",
    }
    if abs(ratio) < 1e-4:
        return "Nothing is gained. Which quantity has to be averaged, the density or its logarithm?"
    near = [text for r, text in mistakes.items() if abs(ratio / r - 1) < 1e-4]
    return near[0] if near else f"The result is {ratio:.2g} times the right number."
