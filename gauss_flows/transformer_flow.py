"""A flow for images whose layers are autoregressive over patches, with a transformer as the network."""

import equinox as eqx
from flowjax.bijections import AbstractBijection, Chain, Flip, Invert
from jaxtyping import PRNGKeyArray

from gauss_flows import masks
from gauss_flows.autoregressive import AutoregressiveInverse, MaskedAutoregressive
from gauss_flows.bijection import Scan, stack, standard_normal
from gauss_flows.bijectors import exp_affine
from gauss_flows.conditioners import patch_transformer
from gauss_flows.parametrize import Parametrized
from gauss_flows.transformed import Transformed
from gauss_flows.validate import Shape, expect_whole


def transformer_flow(
    key: PRNGKeyArray,
    shape: Shape,
    *,
    patch: int = 2,
    layers: int = 4,
    bijector: AbstractBijection | Parametrized | None = None,
    cond_dim: int | None = None,
    nn_width: int = 48,
    nn_depth: int = 1,
    heads: int = 4,
    inverse: AutoregressiveInverse | None = None,
) -> Transformed:
    r"""A flow of autoregressive layers over patches, each with a causal transformer, for images.

    Each layer is a :class:`~gauss_flows.MaskedAutoregressive` from data to latent, whose conditioner is
    :class:`~gauss_flows.conditioners.PatchTransformer`, and then a reversal of the image's axes: so the order
    of the patches is reversed in every other layer, and all layers share one program in a
    :class:`~gauss_flows.Scan`. A density takes one pass per layer. A sample takes one step per layer and
    patch; all steps together cost the arithmetic of one pass, since keys and values are kept.

    Args:
        key: Random key.
        shape: The image's shape, (height, width) or (height, width, channels).
        patch: Height and width of a patch; the elements of one patch do not depend on each other in a layer.
        layers: Number of autoregressive layers.
        bijector: Any unconditional scalar bijection. Default: :math:`z = (x - \mu)\, e^{-a}` with
            :math:`|a| \le 2`, ``Invert(gf.bijectors.exp_affine(2.0))``.
        cond_dim: Size of an external condition, such as a class as a vector of zeros and a one.
        nn_width: Size of a token, divisible by ``heads``.
        nn_depth: Blocks of attention in each layer.
        heads: Attention heads.
        inverse: As for :class:`~gauss_flows.MaskedAutoregressive`.

    Returns:
        A flowjax ``Transformed`` over a standard normal base. It starts as the identity but for the order of
        the elements.

    Raises:
        ValueError: If an argument does not fit.

    Source:
        Zhai et al., "Normalizing flows are capable generative models" (ICML 2025).

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> flow = gf.transformer_flow(jr.key(0), (4, 4), layers=2, nn_width=8)
        >>> flow.log_prob(jnp.zeros((3, 4, 4))).shape
        (3,)
    """
    shape = masks.patch_order(shape, patch).shape  # checked
    options = {
        "shape": shape,
        "patch": patch,
        "bijector": Invert(exp_affine(2.0)) if bijector is None else bijector,
        "conditioner": patch_transformer(nn_width, nn_depth, heads=heads, zero_last=True),
        "cond_dim": cond_dim,
        "inverse": inverse,
    }
    stacked = stack(key, expect_whole("layers", layers, 1), eqx.Partial(_layer, **options))
    return Transformed(standard_normal(shape), Invert(Scan(stacked)))


def _layer(key, *, shape, patch, **options):
    flip = Flip(shape)  # type: ignore[call-arg]
    order = masks.patch_order(shape, patch)
    return Chain([MaskedAutoregressive(key, shape, order=order, **options), flip])
