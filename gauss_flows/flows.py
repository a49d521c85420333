"""Whole distributions, put together from the layers with good defaults."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from flowjax.bijections import AbstractBijection, Chain, Flip, Invert, Permute
from flowjax.distributions import AbstractDistribution
from jaxtyping import PRNGKeyArray, PyTree

from gauss_flows.actnorm import ActNorm
from gauss_flows.autoregressive import AutoregressiveInverse, MaskedAutoregressive
from gauss_flows.bijection import Scan, base_density, stack
from gauss_flows.circular import CircularSpline, LinesAndCircles, lines_and_circles_layer
from gauss_flows.conditioners import ConditionerFactory, made, mlp
from gauss_flows.continuous import FlowODE
from gauss_flows.coupling import Coupling
from gauss_flows.linear import HouseholderRotation, LULinear
from gauss_flows.log_det import LogDetMethod
from gauss_flows.marginal import MarginalGaussianization
from gauss_flows.parametrize import Parametrized, limited
from gauss_flows.residual import Residual, ResidualInverse
from gauss_flows.spline import RQSpline
from gauss_flows.supports import Supports, over
from gauss_flows.transformed import Transformed
from gauss_flows.validate import expect_whole

Mixing = Literal["lu", "householder", "flip"]


def coupling_flow(
    key: PRNGKeyArray,
    dim: int,
    *,
    layers: int = 8,
    bijector: AbstractBijection | Parametrized | None = None,
    mixing: Mixing = "lu",
    cond_dim: int | None = None,
    conditioner: ConditionerFactory | None = None,
    nn_width: int = 64,
    nn_depth: int = 2,
    actnorm: bool = False,
    supports: Sequence | None = None,
    base: AbstractDistribution | None = None,
) -> Transformed:
    r"""A flow of coupling layers with a linear map before each, over a standard normal base.

    Each layer is [ActNorm], mixing, :class:`~gauss_flows.Coupling` with the first half passive. The
    layers are stacked in a :class:`~gauss_flows.Scan`, so compilation does not grow with their number.

    Args:
        key: Random key.
        dim: D, at least 1. A single coordinate has no other to depend on: each layer is then a map whose
            parameters depend on the condition, if there is one, and are free otherwise.
        layers: Number of coupling layers.
        bijector: Any unconditional scalar bijection. Default: ``RQSpline(n_bins=8, interval=4.0)``. What the
            networks add to its scales and shifts is limited smoothly, so that no weights make a point within
            1e6 overflow; ordinary values stay exactly as they are. A
            :class:`~gauss_flows.Parametrized` is taken as it is, without limits unless it has its own.
        mixing: "lu" (a flip of the coordinates' order, then a trained linear map that starts as the
            identity), "householder" (trained rotations that start at random) or "flip" alone.
        cond_dim: Size of an external condition. Default: none.
        conditioner: As for :class:`~gauss_flows.Coupling`. Default: an MLP with silu whose last layer
            starts at zero, so that each coupling starts as ``bijector``.
        nn_width: Hidden units of the default conditioner.
        nn_depth: Hidden layers of the default conditioner.
        actnorm: Put an :class:`~gauss_flows.ActNorm` first in each layer; see
            :func:`~gauss_flows.data_init`.
        supports: What each coordinate can take, as for :class:`~gauss_flows.Supports`; samples lie there.
            Default: all real numbers.
            Angles make circles: they have a uniform base, circular splines in couplings of their own, and
            networks that are given their cosine and sine.
        base: The base density, any flowjax distribution of shape (dim,). Its parameters are trained unless
            they are wrapped in ``paramax.non_trainable``; ``StudentT(5 * jnp.ones(dim))`` has heavier tails.
            Default: a standard normal.

    Returns:
        A flowjax ``Transformed``: ``log_prob``, ``sample``; data to latent is
        ``flow.bijection.inverse``.

    Raises:
        ValueError: If an argument does not fit.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> flow = gf.coupling_flow(jr.key(0), 2, layers=4)
        >>> flow.log_prob(jnp.zeros((3, 2))).shape
        (3,)
    """
    if mixing not in get_args(Mixing):
        raise ValueError(f"`mixing` must be one of {get_args(Mixing)}; got {mixing!r}.")
    network = {"conditioner": conditioner, "nn_width": nn_width, "nn_depth": nn_depth, "cond_dim": cond_dim}
    options = {"bijector": _limited(bijector, layers), "mixing": mixing, "actnorm": actnorm}
    given = Supports.of(supports, dim, angles=True)
    if given is not None and given.angles:
        if base is not None:
            raise ValueError("`base` must be left out of a flow with angles, whose base is uniform on them.")
        return _with_circles(key, given, layers, **network, **options)
    return _flow(key, dim, layers, _coupling_layer, supports=given, base=base, **network, **options)


def _limited(bijector, layers):
    return limited(RQSpline() if bijector is None else bijector, expect_whole("layers", layers, 1))


def _flow(key, dim, layers, layer, *, supports=None, base=None, **options):
    base, layers = base_density(base, dim), expect_whole("layers", layers, 1)
    layer = eqx.Partial(layer, shape=base.shape, **options)
    return over(supports, Transformed(base, Invert(Scan(stack(key, layers, layer)))))


def _with_circles(key, supports, layers, *, mixing, actnorm, conditioner, nn_width, nn_depth, **options):
    """A flow over lines and circles, in which the lines come first."""
    angles = supports.angles
    order = [i for i in range(*supports.shape) if i not in angles] + list(angles)
    layers, lines = expect_whole("layers", layers, 1), len(order) - len(angles)
    conditioner = conditioner or mlp(nn_width, nn_depth, activation=jax.nn.silu, zero_last=True)

    def layer(key):
        if len(order) == 1:
            return Chain([_single(key, conditioner=conditioner, **options | {"bijector": CircularSpline()})])
        mix_key, key = jr.split(key)
        mixed = Chain(_mixing(mix_key, (lines,), mixing, actnorm)) if lines else None
        return lines_and_circles_layer(key, lines, len(angles), mixed, conditioner=conditioner, **options)

    bijection = Invert(Chain([Permute(jnp.array(order)), Scan(stack(key, layers, layer))]))
    return over(supports, Transformed(LinesAndCircles(lines, len(angles)), bijection))


def _mixing(key, shape, mixing, actnorm):
    parts: list[AbstractBijection] = [ActNorm(shape)] if actnorm else []
    if mixing == "householder":
        return [*parts, HouseholderRotation(2 * ((min(*shape, 8) + 1) // 2), shape, key=key)]
    flip = Flip(shape)  # type: ignore[call-arg]
    return [*parts, flip] if mixing == "flip" else [*parts, flip, LULinear(shape)]


def _coupling_layer(key, *, shape, mixing, actnorm, conditioner, nn_width, nn_depth, **options):
    if conditioner is None:
        conditioner = mlp(nn_width, nn_depth, activation=jax.nn.silu, zero_last=True)
    mix_key, key = jr.split(key)
    parts = _mixing(mix_key, shape, mixing, actnorm)
    if shape == (1,):
        return Chain([*parts, _single(key, conditioner=conditioner, **options)])
    return Chain([*parts, Coupling(key, shape=shape, conditioner=conditioner, **options)])


def _single(key, *, bijector, cond_dim, **options):
    """The map of a single coordinate, whose parameters have nothing but the condition to depend on."""
    if cond_dim is None:
        return MarginalGaussianization((1,), bijector=bijector)
    return MaskedAutoregressive(key, shape=(1,), bijector=bijector, cond_dim=cond_dim, **options)


def maf(
    key: PRNGKeyArray,
    dim: int,
    *,
    layers: int = 5,
    bijector: AbstractBijection | Parametrized | None = None,
    passes: int | None = None,
    cond_dim: int | None = None,
    conditioner: ConditionerFactory | None = None,
    nn_width: int = 64,
    nn_depth: int = 2,
    inverse: AutoregressiveInverse | None = None,
    supports: Sequence | None = None,
    base: AbstractDistribution | None = None,
) -> Transformed:
    r"""A masked autoregressive flow: fast densities; a sample takes one step per layer and coordinate.

    Each layer is a reversal of the coordinates' order, then a :class:`~gauss_flows.MaskedAutoregressive`
    from data to latent, over a standard normal base; the layers are stacked in a :class:`~gauss_flows.Scan`.

    Args:
        key: Random key.
        dim: D, at least 1. With a single coordinate each layer is a trained scale and shift, and a map whose
            parameters depend on the condition, if there is one, and are free otherwise.
        layers: Number of autoregressive layers.
        bijector: Any unconditional scalar bijection. Default: ``RQSpline(n_bins=8, interval=4.0)``. What the
            networks add to its scales and shifts is limited smoothly, so that no weights make a point within
            1e6 overflow; ordinary values stay exactly as they are. A
            :class:`~gauss_flows.Parametrized` is taken as it is, without limits unless it has its own.
        passes: Ranks of each layer, 2 (couplings) to D. Default: D.
        cond_dim: Size of an external condition. Default: none.
        conditioner: As for :class:`~gauss_flows.MaskedAutoregressive`. Default: a masked network with silu
            whose last layer starts at zero, so that each layer starts as ``bijector``.
        nn_width: Hidden units of the default conditioner.
        nn_depth: Hidden layers of the default conditioner.
        inverse: As for :class:`~gauss_flows.MaskedAutoregressive`.
        supports: What each coordinate can take, as for :class:`~gauss_flows.Supports`, without angles.
        base: As for :func:`coupling_flow`.

    Returns:
        A flowjax ``Transformed``.

    Raises:
        ValueError: If an argument does not fit.

    Source:
        Papamakarios et al., "Masked autoregressive flow for density estimation" (NeurIPS 2017).

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> gf.maf(jr.key(0), 3, layers=2).log_prob(jnp.zeros((4, 3))).shape
        (4,)
    """
    network = {"conditioner": conditioner, "nn_width": nn_width, "nn_depth": nn_depth, "cond_dim": cond_dim}
    options = {"bijector": _limited(bijector, layers), "passes": passes, "inverse": inverse}
    options |= {"supports": Supports.of(supports, dim), "base": base}
    return _flow(key, dim, layers, _autoregressive_layer, **network, **options)


def _autoregressive_layer(key, *, shape, conditioner, nn_width, nn_depth, **options):
    if conditioner is None:
        conditioner = made(nn_width, nn_depth, activation=jax.nn.silu, zero_last=True)
    if shape == (1,):
        return Chain([LULinear(shape), _single(key, conditioner=conditioner, **options)])
    flip = Flip(shape)  # type: ignore[call-arg]
    return Chain([flip, MaskedAutoregressive(key, shape=shape, conditioner=conditioner, **options)])


def iaf(key: PRNGKeyArray, dim: int, **options: Any) -> Transformed:
    r"""An inverse autoregressive flow: the layers of :func:`maf` used from base to data, for fast samples.

    Samples, and the density of its own samples, take one pass per layer; the density of other points takes
    one step per layer and coordinate.

    Args:
        key: Random key.
        dim: D, at least 1.
        **options: As for :func:`maf`.

    Returns:
        A flowjax ``Transformed``.

    Raises:
        ValueError: As :func:`maf`.

    Source:
        Kingma et al., "Improved variational inference with inverse autoregressive flow" (NeurIPS 2016).

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> gf.iaf(jr.key(0), 3, layers=2).sample(jr.key(1), (4,)).shape
        (4, 3)
    """
    supports = Supports.of(options.pop("supports", None), dim)
    flow: PyTree = maf(key, dim, **options)
    return over(supports, Transformed(flow.base_dist, flow.bijection.bijection))


def residual_flow(
    key: PRNGKeyArray,
    dim: int,
    *,
    layers: int = 16,
    lipschitz: float = 0.9,
    cond_dim: int | None = None,
    nn_width: int = 64,
    nn_depth: int = 2,
    actnorm: bool = True,
    log_det: LogDetMethod = "exact",
    terms: int | None = None,
    inverse: ResidualInverse | None = None,
    supports: Sequence | None = None,
    base: AbstractDistribution | None = None,
) -> Transformed:
    r"""A flow of residual blocks: every coordinate depends on every other, by a bounded amount.

    Each layer is an :class:`~gauss_flows.ActNorm` and a :class:`~gauss_flows.Residual` from data to latent,
    over a standard normal base; the layers are stacked in a :class:`~gauss_flows.Scan`. A block stretches no
    direction by more than 1 + L and shrinks none below 1 - L, so it takes more blocks than couplings.

    Args:
        key: Random key.
        dim: D, at least 1.
        layers: Number of blocks.
        lipschitz: L, as for :class:`~gauss_flows.Residual`.
        cond_dim: Size of an external condition. Default: none.
        nn_width: Hidden units of each block.
        nn_depth: Hidden layers of each block.
        actnorm: Put an :class:`~gauss_flows.ActNorm` first in each layer.
        log_det: As for :class:`~gauss_flows.Residual`; :func:`~gauss_flows.fit` trains with any of the three.
            With "hutchinson" or "roulette" densities need ``gf.with_log_det(flow, "exact")`` or a key.
        terms: As for :class:`~gauss_flows.Residual`.
        inverse: As for :class:`~gauss_flows.Residual`.
        supports: What each coordinate can take, as for :class:`~gauss_flows.Supports`, without angles.
        base: As for :func:`coupling_flow`.

    Returns:
        A flowjax ``Transformed``.

    Raises:
        ValueError: If an argument does not fit.

    Source:
        Chen et al., "Residual flows for invertible generative modeling" (NeurIPS 2019).

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> gf.residual_flow(jr.key(0), 3, layers=2).log_prob(jnp.zeros((4, 3))).shape
        (4,)
    """
    network = {"lipschitz": lipschitz, "nn_width": nn_width, "nn_depth": nn_depth, "cond_dim": cond_dim}
    options = {"log_det": log_det, "terms": terms, "inverse": inverse}
    options |= {"supports": Supports.of(supports, dim)}
    return _flow(key, dim, layers, _residual_layer, base=base, actnorm=actnorm, **network, **options)


def _residual_layer(key, *, shape, actnorm, **options):
    block = Residual(key, shape=shape, **options)
    return Chain([ActNorm(shape), block]) if actnorm else block


def continuous_flow(
    key: PRNGKeyArray, dim: int, *, base: AbstractDistribution | None = None, **options: Any
) -> Transformed:
    r"""A continuous flow: a standard normal base carried to the data by one :class:`~gauss_flows.FlowODE`.

    Train it with ``gf.fit(..., loss=gf.flow_matching())``, which needs no solver. The default loss, the
    likelihood, solves the equation for each batch, and takes several hundred times as long per step.

    Args:
        key: Random key.
        dim: D, at least 1.
        base: As for :func:`coupling_flow`.
        **options: As for :class:`~gauss_flows.FlowODE`. The default solver evaluates the velocity 128 times.

    Returns:
        A flowjax ``Transformed``; data to latent is ``flow.bijection.inverse``.

    Raises:
        ValueError: If an argument does not fit.

    Source:
        Chen et al., "Neural ordinary differential equations" (NeurIPS 2018); Lipman et al., "Flow matching
        for generative modeling" (ICLR 2023).

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> gf.continuous_flow(jr.key(0), 3).log_prob(jnp.zeros((4, 3))).shape
        (4,)
    """
    base = base_density(base, dim)
    return Transformed(base, FlowODE(key, base.shape, **options))
