"""Gaussianization: maps of single coordinates and rotations in turn, fitted without a gradient or trained."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flowjax.bijections import AbstractBijection, Chain, Invert
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from gauss_flows.actnorm import ActNorm1D, holds, set_layers, standardize, walk
from gauss_flows.autoregressive import MaskedAutoregressive
from gauss_flows.base import (
    Scan,
    Transformed,
    column_names,
    expect,
    expect_concrete,
    expect_data,
    expect_rows,
    expect_whole,
    mean_and_std,
    stack,
    standard_normal,
)
from gauss_flows.bijectors import MixtureGaussianCDF
from gauss_flows.conditioners import set_constant
from gauss_flows.coupling import Coupling
from gauss_flows.linear import HouseholderRotation
from gauss_flows.marginal import MarginalGaussianization

_ROTATIONS = ("random", "pca")
_BACKGROUND = 0.01  # least weight of a mixture's widest component, which keeps its tails near the identity


def gaussianization_flow(
    key: PRNGKeyArray, dim: int, *, layers: int = 8, bijector: AbstractBijection | None = None
) -> Transformed:
    r"""A trainable Gaussianization flow: no network, only maps of single coordinates and rotations in turn.

    An :class:`~gauss_flows.ActNorm1D`, then layers of :class:`~gauss_flows.MarginalGaussianization` and
    :class:`~gauss_flows.HouseholderRotation` (D reflections, random at first), over a standard normal
    base. The layers are stacked in a :class:`~gauss_flows.Scan`.

    Args:
        key: Random key for the rotations.
        dim: D, at least 1.
        layers: Number of layers.
        bijector: As for :class:`~gauss_flows.MarginalGaussianization`.

    Returns:
        A flowjax ``Transformed``.

    Raises:
        ValueError: If an argument does not fit.

    Source:
        Meng et al., "Gaussianization flows" (AISTATS 2020).

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> gf.gaussianization_flow(jr.key(0), 3, layers=2).log_prob(jnp.zeros((4, 3))).shape
        (4,)
    """
    dim, layers = expect_whole("dim", dim, 1), expect_whole("layers", layers, 1)
    bijector = MixtureGaussianCDF() if bijector is None else bijector
    made = stack(jr.split(key, layers), eqx.Partial(_layer, dim=dim, bijector=bijector))
    return _flow(dim, made, ActNorm1D((dim,)))


_FITTED = (MarginalGaussianization, Coupling, MaskedAutoregressive)
_KINDS = (*_FITTED, ActNorm1D, HouseholderRotation)


def _layer(key, dim, bijector):
    marginal = MarginalGaussianization((dim,), bijector=bijector)
    return Chain([marginal, HouseholderRotation(dim, (dim,), key=key)])


def _flow(dim, layers, first):
    parts = [first] if layers is None else [first, Scan(layers)]
    return Transformed(standard_normal(dim), Invert(Chain(parts)))


@dataclass(frozen=True)
class RBIGResult:
    """What :func:`rbig` found.

    Attributes:
        flow: The flow, with as many layers as were best on the held-out rows: an
            :class:`~gauss_flows.ActNorm1D` that standardizes, then, if there are any, the layers in a
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
    rotation: str = "random",
    tolerance: float = 0.01,
    patience: int = 10,
    val_fraction: float = 0.1,
    em_steps: int = 50,
) -> RBIGResult:
    r"""Rotation-based iterative Gaussianization: a flow fitted layer by layer, without a gradient.

    Each layer fits a mixture of Gaussians to every coordinate by expectation maximisation, maps it to a
    standard normal by the mixture's distribution function, and rotates. The maps leave the total correlation
    as it is and take the marginals' negentropy; the rotation turns total correlation into negentropy for the
    next layer. It stops when the last ``patience`` layers together brought less than ``tolerance`` on
    held-out rows: the marginals of the rotated data then look Gaussian, which does not prove that the joint
    density is. The flow keeps the layers up to the largest sum of gains, none if that is zero.

    Args:
        key: Random key for the rotations and the split.
        x: Data, shape (n, D), floating point.
        layers: Most layers.
        n_components: Components of each mixture, at least 2.
        rotation: "random", or "pca" (the principal axes of the marginally Gaussian data).
        tolerance: In nats, on held-out rows.
        patience: A number of layers.
        val_fraction: Part of the rows held out; 0 to judge on the rows that are fitted.
        em_steps: Steps of expectation maximisation.

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
    expect(plane, "x", "have shape (n, D) with n and D at least 2", rows.shape)
    data = jnp.asarray(expect_rows(rows, rows.shape[1:], 2))
    most, patience = expect_whole("layers", layers, 1), expect_whole("patience", patience, 1)
    expect(rotation in _ROTATIONS, "rotation", f"be one of {_ROTATIONS}", repr(rotation))
    expect(0 <= val_fraction < 1, "val_fraction", "lie in [0, 1)", val_fraction)
    expect(tolerance >= 0, "tolerance", "be at least 0", tolerance)
    bijector = MixtureGaussianCDF(expect_whole("n_components", n_components, 2))
    split_key, *keys = jr.split(key, 1 + most)
    n_val = max(1, round(val_fraction * len(data))) if val_fraction else 0
    order = np.asarray(jr.permutation(split_key, len(data)))
    held, fitted = (data[order[:n_val]], data[order[n_val:]]) if n_val else (data, data)
    # Fewer rows lie in a hyperplane, or leave a component less than two numbers to learn from.
    least = max(2 * n_components, data.shape[1] + 1)
    expect(len(fitted) >= least, "x", f"leave at least {least} rows to fit", len(fitted))
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
    return RBIGResult(_flow(data.shape[1], stacked, first), gain, error, best, stopped)


@jax.jit
def _standardized(fitted, held):
    """The standardization, both parts behind it, which columns are constant, the least eigenvalue."""
    first = standardize(ActNorm1D(fitted.shape[1:]), fitted)
    constant = mean_and_std(fitted)[2]
    fitted, held = (jax.vmap(first.transform)(rows) for rows in (fitted, held))
    return first, fitted, held, constant, jnp.linalg.eigvalsh(fitted.T @ fitted / len(fitted))[0]


@eqx.filter_jit
def _fit_layer(key, bijector, fitted, held, rotation, em_steps):
    """A layer set from the data, what leaves it, and the mean and standard error of what it gained."""
    layer = _layer(key, fitted.shape[1], bijector)
    change = eqx.Partial(_gaussianize, rotation=rotation, em_steps=em_steps)
    layer, fitted = walk(layer, fitted, None, change, _KINDS)
    z, log_det = jax.vmap(layer.transform_and_log_det)(held)
    gain = log_det + 0.5 * ((held - z) * (held + z)).sum(axis=1)
    return layer, fitted, z, (gain.mean(), gain.std() / np.sqrt(len(held)))


def warm_start(
    flow: Any,
    x: ArrayLike,
    condition: ArrayLike | None = None,
    *,
    rotation: str | None = None,
    em_steps: int = 50,
) -> Any:
    r"""The same flow, set layer by layer to iterative Gaussianization of the data that reaches each layer.

    A pure pass, as :func:`~gauss_flows.data_init`, for flows whose bijector is ``MixtureGaussianCDF``:

    - :class:`~gauss_flows.MarginalGaussianization`: every coordinate's mixture is fitted by expectation
      maximisation. A coordinate that is constant up to rounding keeps its bijector as it is.
    - :class:`~gauss_flows.Coupling` and :class:`~gauss_flows.MaskedAutoregressive`: likewise for the
      coordinates that they transform. The conditioner's last layer gets a zero kernel, and its bias carries
      the mixtures, so that for now the layer reads nothing.
    - :class:`~gauss_flows.ActNorm1D`: as by ``data_init``.
    - :class:`~gauss_flows.HouseholderRotation`: see ``rotation``.

    On a :func:`gaussianization_flow` this is RBIG with the flow's own rotations and a given number of layers.

    Args:
        flow: A ``Transformed`` distribution, or a bijection that takes data to latent.
        x: Data, shape (n, \*flow.shape).
        condition: One row for each row of x, for conditional flows; the warm start does not read it.
        rotation: "pca" sets rotations to the principal axes (they need D reflections). Default: they stay.
        em_steps: Steps of expectation maximisation.

    Returns:
        A flow of the same structure.

    Raises:
        ValueError: If there is nothing to set, or a layer cannot be set: it is inside a container that
            :func:`~gauss_flows.data_init` cannot enter, or its data are so wide or so narrow that the
            mixture's bounded scales do not reach them. As ``data_init`` for x and the condition.

    Source:
        :func:`rbig`; Meng et al., "Gaussianization flows" (AISTATS 2020), section 4, for the start.

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> x = gf.targets.two_moons().sample(jr.key(0), (500,))
        >>> cold = gf.gaussianization_flow(jr.key(1), 2, layers=3)
        >>> bool(gf.warm_start(cold, x).log_prob(x).mean() > cold.log_prob(x).mean() + 0.5)
        True
    """
    if isinstance(flow, Transformed):
        flow.expect_single()
    data, rows = expect_data(flow, x, condition)
    expect(rotation in (None, "pca"), "rotation", "be None or 'pca'", repr(rotation))
    em_steps = expect_whole("em_steps", em_steps, 1)
    expect(holds(flow, _FITTED), "flow", "hold a layer to set", type(flow).__name__)
    kinds = _KINDS if rotation == "pca" else (*_FITTED, ActNorm1D)
    change = eqx.Partial(_gaussianize, rotation=rotation, em_steps=em_steps)
    return set_layers(flow, data, rows, change, kinds)


def _gaussianize(layer, x, condition, forward, *, rotation, em_steps):
    """One layer, set from the data that reaches it, and whether its bijectors' bounds allow that."""
    flat = x.reshape(len(x), -1)
    fits = forward or not isinstance(layer, _FITTED)
    expect(fits, "flow", "take data to latent by `transform`", "its inverse")
    if isinstance(layer, ActNorm1D):
        return standardize(layer, x, forward=forward), True
    if isinstance(layer, MarginalGaussianization):
        raw, fits = _offsets(layer._family, flat, em_steps)
        return eqx.tree_at(lambda b: b.raw, layer, raw), fits
    if isinstance(layer, (Coupling, MaskedAutoregressive)):
        active = ~layer.mask.ravel() if isinstance(layer, Coupling) else slice(None)
        constant, fits = _offsets(layer._family, flat[:, active], em_steps)
        network = set_constant(layer.conditioner, constant.ravel())
        return eqx.tree_at(lambda b: b.conditioner, layer, network), fits
    if isinstance(layer, HouseholderRotation) and rotation == "pca":
        axes = principal_axes(flat)
        turn = layer.with_axes(axes)  # backward: the same reflections in the other order
        turn = turn if forward else eqx.tree_at(lambda b: b.params, turn, turn.params[::-1])
        return turn, True
    return layer, True


def _offsets(family, columns, em_steps):
    """What each column's fitted mixture has more than the family's own bijector, shape (columns, P).

    And whether the bijector's bound on log-scales admits the widest component of every column.
    """
    bijector = family(family.theta(jnp.zeros((1, family.size)))[0])
    fits = isinstance(bijector, MixtureGaussianCDF) and bijector.logits.size > 1
    kind = type(bijector).__name__
    expect(fits, "flow", "have MixtureGaussianCDF, of two components or more, as bijector", kind)

    def offset(column):
        fitted = bijector.with_components(*fit_mixture(column, bijector.logits.size, steps=em_steps))
        constant = mean_and_std(column)[2]
        return jnp.where(constant, 0, family.flatten(fitted) - family.flatten(bijector))

    _, std, constant = mean_and_std(columns)
    within = jnp.abs(jnp.log(std)) < bijector.log_scales.kwargs["bound"]
    return jax.lax.map(offset, columns.T), (constant | within).all()


def principal_axes(x: Float[Array, "n D"]) -> Float[Array, "D D"]:
    """Return the orthonormal principal axes of data as rows, the one of the largest variance first."""
    centred = x - mean_and_std(x)[0][None]
    largest = jnp.abs(centred).max()  # divided out, so that no square over- or underflows
    centred = centred / jnp.where(largest > 0, largest, 1)
    return jnp.linalg.eigh(centred.T @ centred / len(x))[1][:, ::-1].T


def fit_mixture(
    x: Float[Array, " n"], n_components: int, *, steps: int = 50, min_scale: float = 0.02
) -> tuple[Float[Array, " K"], Float[Array, " K"], Float[Array, " K"]]:
    """A mixture of Gaussians fitted to numbers by expectation maximisation.

    The first component keeps the sample's mean and standard deviation and a weight of 0.01 at least: without
    it the tails are those of the widest component, narrower than the sample, and many layers of such tails
    throw held-out points ever farther out.

    Args:
        x: The sample.
        n_components: K, at least 2.
        steps: Steps of expectation maximisation, from quantiles.
        min_scale: Least scale, in standard deviations of the sample.

    Returns:
        Log-weights, means and scales, shape (K,) each.

    Raises:
        ValueError: If ``n_components`` is below 2.

    Source:
        Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm" (1977).
    """
    k = expect_whole("n_components", n_components, 2)
    mean, std, _ = mean_and_std(x)
    unit = ((x - mean) / std)[:, None]

    def background(weights, means, scales):
        weights = weights.at[0].set(jnp.maximum(weights[0], _BACKGROUND))
        return weights / weights.sum(), means.at[0].set(0), scales.at[0].set(1)

    def step(state, _):
        weights, means, scales = state
        bells = -0.5 * jnp.square((unit - means[None, :]) / scales[None, :])
        shares = jax.nn.softmax((jnp.log(weights) - jnp.log(scales))[None, :] + bells, axis=1)
        count = shares.sum(axis=0) + 1e-3
        means = (shares * unit).sum(axis=0) / count
        spread = jnp.sqrt((shares * jnp.square(unit - means[None, :])).sum(axis=0) / count)
        return background(count / count.sum(), means, jnp.maximum(spread, min_scale)), None

    quantiles = jnp.quantile(unit[:, 0], (jnp.arange(k, dtype=x.dtype) + 0.5) / k)
    equal = jnp.full(k, 1 / k, x.dtype)
    start = background(equal, quantiles, jnp.full(k, k**-0.5, x.dtype))
    (weights, means, scales), _ = jax.lax.scan(step, start, length=expect_whole("steps", steps, 1))
    return jnp.log(weights), mean + std * means, std * scales
