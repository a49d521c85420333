"""Graders of the exercises in the chapter ``image_flows``. Each returns a sentence about an attempt."""

import numpy as np


def _unsqueezed(y, part, channels_first=True):
    """The right image, or that of a common mistake.

    Args:
        y: Shape (H, V, 4C).
        part: From row i and column j in a block to the number of its group of channels, 0 to 3.
        channels_first: Whether the channels of one pixel are neighbors in y.
    """
    height, width, channels = y.shape
    groups = (
        y.reshape(height, width, 4, -1) if channels_first else y.reshape(height, width, -1, 4).swapaxes(2, 3)
    )
    image = np.zeros((2 * height, 2 * width, channels // 4), y.dtype)
    for i in range(2):
        for j in range(2):
            image[i::2, j::2] = groups[:, :, part(i, j)]
    return image


def grade_unsqueeze(unsqueeze):
    """Try ``unsqueeze(y)``, which takes shape (H, V, 4C) and returns shape (2H, 2V, C)."""
    for shape in ((2, 2, 4), (2, 3, 8)):
        y = np.arange(np.prod(shape)).reshape(shape)
        right = _unsqueezed(y, lambda i, j: 2 * i + j)
        try:
            found = np.asarray(unsqueeze(y))
        except (ValueError, TypeError, IndexError) as error:
            return f"an input of shape {shape} raises {type(error).__name__}: {error}"
        if found.shape != right.shape:
            return f"an input of shape {shape} must give shape {right.shape}; it gives {found.shape}"
        if np.array_equal(found, right):
            continue
        mistakes = {
            "rows and columns of a block are exchanged": _unsqueezed(y, lambda i, j: 2 * j + i),
            "the channels of one pixel must be neighbors in y": _unsqueezed(y, lambda i, j: 2 * i + j, False),
        }
        for comment, wrong in mistakes.items():
            if np.array_equal(found, wrong):
                return comment
        if np.array_equal(np.sort(found.ravel()), y.ravel()):
            return f"all numbers are there, but {int((found != right).sum())} are at a wrong place"
        return "some numbers are lost or occur twice"
    return "right"
