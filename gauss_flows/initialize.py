"""Set layers from data before training: standardize, or fit the marginals of every layer."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from gauss_flows.actnorm import ActNorm, standardize
from gauss_flows.autoregressive import MaskedAutoregressive
from gauss_flows.conditioners import set_constant
from gauss_flows.coupling import Coupling
from gauss_flows.layer_walk import holds, set_layers
from gauss_flows.levels import ImageModel
from gauss_flows.linear import HouseholderRotation
from gauss_flows.marginal import MarginalGaussianization
from gauss_flows.mixtures import MixtureGaussianCDF, fit_mixture
from gauss_flows.moments import mean_and_std, principal_axes
from gauss_flows.transformed import Transformed
from gauss_flows.validate import expect_data, expect_whole

_FITTED = (MarginalGaussianization, Coupling, MaskedAutoregressive)
GAUSSIANIZED = (*_FITTED, ActNorm, HouseholderRotation)


def data_init(flow: PyTree, x: Float[Array, "n *shape"], condition: Array | None = None) -> PyTree:
    """Return the same flow with every :class:`ActNorm` set from the data that reaches it.

    A pure pass: nothing is changed in place, and all else stays as it was. It goes from data to latent
    through distributions inside one another and through every container that
    :func:`~gauss_flows.layer_walk.walk` lists; other bijections are applied as they are. A coordinate without
    spread, or whose spread is nothing but rounding, is not magnified: it keeps scale 1.

    Args:
        flow: A ``Transformed`` distribution, or a bijection that takes data to latent.
        x: Data, one row per event, at least two rows.
        condition: One row for each row of x, for conditional flows.

    Returns:
        A flow of the same structure.

    Raises:
        ValueError: If x has not two rows of the event's shape or more, or is no finite real floating-point
            array, or loses its spread in JAX's floating-point type; if the condition does not fit; if a row
            lies outside the flow's support; or if a layer is inside a container that the pass cannot enter.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp
        >>> from flowjax.bijections import Chain, Exp, Invert
        >>> x = jnp.exp(jnp.array([[1.0], [3.0]]))
        >>> bijection = gf.data_init(Chain([Invert(Exp((1,))), gf.ActNorm((1,))]), x)
        >>> print(f"{bijection.transform(x[0])[0]:.4f}")
        -1.0000
    """
    _expect_flow(flow)
    x, condition = expect_data(flow, x, condition)
    return set_layers(flow, x, condition, _set_actnorm, (ActNorm,))


def _expect_flow(flow: PyTree) -> None:
    """Refuse a stack of flows, and a model of whole numbers, whose levels no layer takes as they are."""
    if isinstance(flow, ImageModel):
        raise ValueError(
            "`flow` must be a flow for real numbers, such as the `flow` of a gf.Dequantize model, whose data "
            f"are `model.dequantize(images, key)`; got {type(flow).__name__}."
        )
    if isinstance(flow, Transformed):
        flow.expect_single()


def _set_actnorm(layer, x, condition, forward):
    return standardize(layer, x, forward=forward), True


def warm_start(
    flow: PyTree,
    x: ArrayLike,
    condition: ArrayLike | None = None,
    *,
    rotation: Literal["pca"] | None = None,
    em_steps: int = 50,
) -> PyTree:
    r"""Return the same flow, set layer by layer so that it Gaussianizes the data.

    A pure pass, as :func:`~gauss_flows.data_init`, for flows whose bijector is ``MixtureGaussianCDF``:

    - :class:`~gauss_flows.MarginalGaussianization`: every coordinate's mixture is fitted by expectation
      maximization. A coordinate that is constant up to rounding keeps its bijector as it is.
    - :class:`~gauss_flows.Coupling` and :class:`~gauss_flows.MaskedAutoregressive`: likewise for the
      coordinates that they transform. The conditioner's last layer gets a zero kernel, and its bias carries
      the mixtures, so that the layer starts as a map of each coordinate alone.
    - :class:`~gauss_flows.ActNorm`: as by ``data_init``.
    - :class:`~gauss_flows.HouseholderRotation`: see ``rotation``.

    On a :func:`gaussianization_flow` this is RBIG with the flow's own rotations and a given number of layers.

    Args:
        flow: A ``Transformed`` distribution, or a bijection that takes data to latent.
        x: Data, shape (n, \*flow.shape).
        condition: One row for each row of x, for conditional flows; the warm start does not depend on it.
        rotation: "pca" sets rotations to the principal axes (they need D reflections). Default: they stay.
        em_steps: Steps of expectation maximization.

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
    _expect_flow(flow)
    data, rows = expect_data(flow, x, condition)
    if rotation not in (None, "pca"):
        raise ValueError(f"`rotation` must be None or 'pca'; got {rotation!r}.")
    em_steps = expect_whole("em_steps", em_steps, 1)
    if not holds(flow, _FITTED):
        raise ValueError(f"`flow` must hold a layer to set; got {type(flow).__name__}.")
    kinds = GAUSSIANIZED if rotation == "pca" else (*_FITTED, ActNorm)
    change = eqx.Partial(gaussianize, rotation=rotation, em_steps=em_steps)
    return set_layers(flow, data, rows, change, kinds)


def gaussianize(
    layer: PyTree,
    x: Array,
    condition: Array | None,
    forward: bool,
    *,
    rotation: Literal["pca"] | None,
    em_steps: int,
) -> tuple[PyTree, PyTree]:
    """Return one layer set from the data that reaches it, and whether its bijector's bounds allow that."""
    flat = x.reshape(len(x), -1)
    fits = forward or not isinstance(layer, _FITTED)
    if not fits:
        raise ValueError("`flow` must take data to latent by `transform`; got its inverse.")
    if isinstance(layer, ActNorm):
        return standardize(layer, x, forward=forward), True
    if isinstance(layer, MarginalGaussianization):
        raw, fits = _offsets(layer._bijector, flat, em_steps)
        return eqx.tree_at(lambda b: b.raw, layer, raw), fits
    if isinstance(layer, (Coupling, MaskedAutoregressive)):
        active = ~layer.mask.ravel() if isinstance(layer, Coupling) else slice(None)
        constant, fits = _offsets(layer._bijector, flat[:, active], em_steps)
        network = set_constant(layer.conditioner, constant.ravel())
        return eqx.tree_at(lambda b: b.conditioner, layer, network), fits
    if isinstance(layer, HouseholderRotation) and rotation == "pca":
        axes = principal_axes(flat)
        turn = layer.with_axes(axes)  # backward: the same reflections in the other order
        turn = turn if forward else eqx.tree_at(lambda b: b.params, turn, turn.params[::-1])
        return turn, True
    return layer, True


def _offsets(parametrized, columns, em_steps):
    """The difference of each column's fitted parameters from those of the bijector as given, (columns, P).

    And whether the bijector's bound on log-scales admits the widest component of every column.
    """
    start = parametrized.theta(jnp.zeros((1, parametrized.size)))[0]
    bijector = parametrized(start)
    fits = isinstance(bijector, MixtureGaussianCDF) and bijector.logits.size > 1
    kind = type(bijector).__name__
    if not fits:
        raise ValueError(
            f"`flow` must have MixtureGaussianCDF, of two components or more, as bijector; got {kind}."
        )

    def offset(column):
        fitted = bijector.with_components(*fit_mixture(column, bijector.logits.size, steps=em_steps))
        constant = mean_and_std(column)[2]
        return jnp.where(constant, 0, parametrized.flatten(fitted) - start)

    _, std, constant = mean_and_std(columns)
    within = jnp.abs(jnp.log(std)) < bijector.log_scales.kwargs["bound"]
    return jax.lax.map(offset, columns.T), (constant | within).all()
