"""The third choice: who reads whom. Boolean arrays of the event's shape, True = passive."""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool

from gauss_flows.base import expect, expect_shape


def half(shape: tuple[int, ...]) -> Bool[np.ndarray, "*shape"]:
    """The first half of the event, in C order, is passive (rounded down if it does not divide).

    Args:
        shape: The event's shape, at least two elements in all.

    Returns:
        Boolean array of that shape; True = passive (read, copied), False = active (transformed).

    Raises:
        ValueError: If the shape has fewer than two elements.

    Example:
        >>> half((5,)).astype(int)
        array([1, 1, 0, 0, 0])
    """
    shape = expect_shape(shape)
    size = math.prod(shape)
    expect(size >= 2, "shape", "hold at least two elements, one to read and one to transform", shape)
    return (np.arange(size) < size // 2).reshape(shape)


def as_mask(mask: Any, shape: tuple[int, ...]) -> Bool[np.ndarray, "*shape"]:
    """The mask as a NumPy array, or the default for None; checked against the event's shape.

    Raises:
        ValueError: If the mask is not boolean, has another shape, or leaves either side empty.
    """
    if mask is None:
        return half(shape)
    try:
        array = np.asarray(mask)
    except Exception as error:  # a traced array has no values to read the layout from
        raise ValueError("`mask` must be a concrete boolean array; got a traced one") from error
    expect(array.dtype == bool, "mask", "be a boolean array, True = passive", f"dtype {array.dtype}")
    expect(array.shape == shape, "mask", f"have shape {shape}, the event's shape", array.shape)
    expect(not array.all(), "mask", "leave an active coordinate (False)", "all True")
    expect(bool(array.any()), "mask", "leave a passive coordinate (True)", "all False")
    return array


__all__ = ["as_mask", "half"]
