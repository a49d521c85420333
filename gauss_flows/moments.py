"""Means, standard deviations and principal axes of data of any scale."""

from types import ModuleType
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Rows = TypeVar("Rows", np.ndarray, Array)


def mean_and_std(x: Rows, eps: float | None = None) -> tuple[Rows, Rows, Rows]:
    """Return the mean and the standard deviation of each column, for any scale and offset.

    Deviations from the first row are divided by the largest of them before anything is squared, so that no
    square over- or underflows. A column whose deviations are nothing but rounding, within eight units in the
    last place, counts as constant. Its standard deviation is 1, since rounding must not be magnified, or the
    true one where that is larger.

    Args:
        x: Rows along the first axis, a NumPy or a JAX array.
        eps: The machine epsilon of the data's type, if that was narrower than the type of x.

    Returns:
        Means, standard deviations, and whether each column is constant; each of shape ``x.shape[1:]``.
    """
    xp: ModuleType = np if isinstance(x, np.ndarray) else jnp
    origin = x[:1]
    largest = xp.abs(x - origin).max(axis=0)
    unit = xp.where(largest > 0, largest, 1).astype(x.dtype)
    deviations = (x - origin) / unit[None]
    mean, std = origin[0] + unit * deviations.mean(axis=0), unit * deviations.std(axis=0)
    eps = float(jnp.finfo(x.dtype).eps) if eps is None else eps
    constant = largest <= 8 * eps * xp.abs(x).max(axis=0)
    return mean, xp.where(constant, xp.maximum(std, 1), std).astype(x.dtype), constant


def principal_axes(x: Float[Array, "n D"]) -> Float[Array, "D D"]:
    """Return the orthonormal principal axes of data as rows, the one of the largest variance first."""
    centered = x - mean_and_std(x)[0][None]
    largest = jnp.abs(centered).max()  # divided out, so that no square over- or underflows
    centered = centered / jnp.where(largest > 0, largest, 1)
    return jnp.linalg.eigh(centered.T @ centered / len(x))[1][:, ::-1].T
