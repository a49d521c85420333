"""Rotation-based iterative Gaussianization: a flow fitted layer by layer, without a gradient."""

from dataclasses import dataclass
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import ArrayLike, PRNGKeyArray

from gauss_flows.actnorm import ActNorm, standardize
from gauss_flows.initialize import GAUSSIANIZED, gaussianize
from gauss_flows.layer_walk import walk
from gauss_flows.marginal import gaussianization_layer, gaussianization_of
from gauss_flows.mixtures import MixtureGaussianCDF
from gauss_flows.moments import mean_and_std
from gauss_flows.transformed import Transformed
from gauss_flows.validate import column_names, expect_concrete, expect_key, expect_rows, expect_whole

Rotation = Literal["random", "pca"]


@dataclass(frozen=True)
class RBIGResult:
    """The result of :func:`rbig`.

    Attributes:
        flow: The flow, with as many layers as were best on the held-out rows: an
            :class:`~gauss_flows.ActNorm` that standardizes, then, if there are any, the layers in a
            :class:`~gauss_flows.Scan`.
        gain: What each fitted layer added to the mean log-likelihood of the held-out rows, in nats, shape
            (m,). The first entry is the marginals' negentropy; each further one is what the rotation before
            it took from the total correlation.
        gain_error: Its standard errors, shape (m,).
        layers: The number of layers in ``flow``, 0 if no layer did better than the standardization alone;
            fitting went on to m before it stopped.
        stopped: "tolerance", "layers", or "non-finite" if the next layer's gain was not finite.
    """

    flow: Transformed
    gain: np.ndarray
    gain_error: np.ndarray
    layers: int
    stopped: str


def rbig(
    key: PRNGKeyArray,
    x: ArrayLike,
    *,
    layers: int = 50,
    n_components: int = 8,
    rotation: Rotation = "random",
    tolerance: float = 0.01,
    patience: int = 10,
    val_fraction: float = 0.1,
    em_steps: int = 50,
) -> RBIGResult:
    r"""Rotation-based iterative Gaussianization: a flow fitted layer by layer, without a gradient.

    Each layer fits a mixture of Gaussians to every coordinate by expectation maximization, maps it to a
    standard normal by the mixture's distribution function, and rotates. The maps leave the total correlation
    as it is and take the marginals' negentropy; the rotation turns total correlation into negentropy for the
    next layer. It stops when the last ``patience`` layers together brought less than ``tolerance`` on
    held-out rows: the marginals of the rotated data then look Gaussian, but the joint density need not be.
    The flow keeps the layers up to the largest sum of gains, none if that is zero.

    Args:
        key: Random key for the rotations and the split.
        x: Data, shape (n, D), floating point.
        layers: Most layers.
        n_components: Components of each mixture, at least 2.
        rotation: "random", or "pca" (the principal axes of the marginally Gaussian data).
        tolerance: In nats, on held-out rows.
        patience: A number of layers.
        val_fraction: Part of the rows held out; 0 to judge on the rows that are fitted.
        em_steps: Steps of expectation maximization.

    Returns:
        An :class:`RBIGResult`.

    Raises:
        ValueError: If an argument does not fit. The rows to fit must be more than the columns and at least
            twice the components. No column may be constant, and no column a linear combination of others:
            such data have no density.

    Source:
        Laparra, Camps-Valls and Malo, "Iterative Gaussianization: from ICA to random rotations" (IEEE
        Transactions on Neural Networks, 2011).

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> x = gf.targets.two_moons().sample(jr.key(0), (500,))
        >>> gf.rbig(jr.key(1), x, layers=3).flow.sample(jr.key(2), (5,)).shape
        (5, 2)
    """
    rows = expect_concrete("x", x)
    plane = rows.ndim == 2 and rows.shape[1] >= 2
    if not plane:
        raise ValueError(f"`x` must have shape (n, D) with n and D at least 2; got {rows.shape}.")
    data = jnp.asarray(expect_rows(rows, rows.shape[1:], 2))
    most, patience = expect_whole("layers", layers, 1), expect_whole("patience", patience, 1)
    if rotation not in get_args(Rotation):
        raise ValueError(f"`rotation` must be one of {get_args(Rotation)}; got {rotation!r}.")
    if not 0 <= val_fraction < 1:
        raise ValueError(f"`val_fraction` must lie in [0, 1); got {val_fraction}.")
    if not tolerance >= 0:
        raise ValueError(f"`tolerance` must be at least 0; got {tolerance}.")
    bijector = MixtureGaussianCDF(expect_whole("n_components", n_components, 2))
    split_key, *keys = jr.split(expect_key(key), 1 + most)
    n_val = max(1, round(val_fraction * len(data))) if val_fraction else 0
    order = np.asarray(jr.permutation(split_key, len(data)))
    held, fitted = (data[order[:n_val]], data[order[n_val:]]) if n_val else (data, data)
    # Fewer rows lie in a hyperplane, or leave a component less than two numbers to learn from.
    least = max(2 * n_components, data.shape[1] + 1)
    if len(fitted) < least:
        raise ValueError(f"`x` must leave at least {least} rows to fit; got {len(fitted)}.")
    first, fitted, held, constant, smallest = _standardized(fitted, held)
    if constant.any():
        raise ValueError(
            f"`x` must vary in every column; {column_names(constant)} is constant up to rounding and has no "
            "density. Drop it"
        )
    if smallest <= 8 * data.shape[1] * float(jnp.finfo(data.dtype).eps):
        raise ValueError(
            "`x` must have linearly independent columns, or it has no density; the least eigenvalue of its "
            f"correlations is {smallest:.0e}. Drop a column that the others determine"
        )
    far = ~np.isfinite(jnp.square(held).sum(axis=1))
    if far.any():
        raise ValueError(
            f"`x` must have a finite log-density in every held-out row; {int(far.sum())} of {len(held)} lie "
            "too many standard deviations from the fitted rows. Leave such outliers out"
        )

    found, gains, stopped = [], [], "layers"
    for key in keys:
        layer, fitted, held, gain = _fit_layer(key, bijector, fitted, held, rotation, em_steps)
        if not np.isfinite(gain).all():
            stopped = "non-finite"
            break
        found.append(layer)
        gains.append((float(gain[0]), float(gain[1])))
        if len(gains) > patience and sum(g for g, _ in gains[-patience:]) < tolerance:
            stopped = "tolerance"
            break
    gain, error = np.array(gains, float).reshape(-1, 2).T
    best = int(np.argmax(np.cumsum([0.0, *gain])))
    stacked = None
    if best:
        arrays, static = zip(*(eqx.partition(layer, eqx.is_array) for layer in found[:best]), strict=True)
        stacked = eqx.combine(jax.tree.map(lambda *a: jnp.stack(a), *arrays), static[0])
    return RBIGResult(gaussianization_of(data.shape[1], stacked, first), gain, error, best, stopped)


@jax.jit
def _standardized(fitted, held):
    """The standardization, both parts behind it, which columns are constant, the least eigenvalue."""
    first = standardize(ActNorm(fitted.shape[1:]), fitted)
    constant = mean_and_std(fitted)[2]
    fitted, held = (jax.vmap(first.transform)(rows) for rows in (fitted, held))
    return first, fitted, held, constant, jnp.linalg.eigvalsh(fitted.T @ fitted / len(fitted))[0]


@eqx.filter_jit
def _fit_layer(key, bijector, fitted, held, rotation, em_steps):
    """A layer set from the data, what leaves it, and the mean and standard error of what it gained."""
    layer = gaussianization_layer(key, fitted.shape[1], bijector)
    change = eqx.Partial(gaussianize, rotation=rotation, em_steps=em_steps)
    layer, fitted = walk(layer, fitted, None, change, GAUSSIANIZED)
    z, log_det = jax.vmap(layer.transform_and_log_det)(held)
    gain = log_det + 0.5 * ((held - z) * (held + z)).sum(axis=1)
    return layer, fitted, z, (gain.mean(), gain.std() / np.sqrt(len(held)))
