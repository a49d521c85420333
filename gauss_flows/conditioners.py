"""The menu of conditioners: networks that compute the bijector's parameters.

A conditioner is any callable from a vector of ``in_size`` to a vector of ``out_size``; it is never
inverted. A *factory* ``(in_size, out_size, *, key) -> callable`` makes one, so that a layer can size
it. Any function of that signature fits wherever ``conditioner=`` stands.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from gauss_flows.convolution import ConvNet as ConvNet
from gauss_flows.convolution import conv as conv
from gauss_flows.made import Activation, Made
from gauss_flows.made import MaskedMLP as MaskedMLP
from gauss_flows.patch_transformer import CausalTransformer as CausalTransformer
from gauss_flows.patch_transformer import PatchTransformer
from gauss_flows.validate import expect_key, expect_whole

ConditionerFactory = Callable[..., Callable[[jax.Array], jax.Array]]


def mlp(
    width: int = 64, depth: int = 2, *, activation: Activation = jax.nn.relu, zero_last: bool = False
) -> ConditionerFactory:
    """A factory of multilayer perceptrons: equinox's ``nn.MLP`` with its default initialization.

    Args:
        width: Units in each hidden layer.
        depth: Number of hidden layers, 0 for a linear map.
        activation: Applied after each hidden layer.
        zero_last: Start the last layer at zero, so that the coupling starts as the bijector it was given.

    Returns:
        ``(in_size, out_size, *, key) -> eqx.nn.MLP``.

    Raises:
        ValueError: If ``width`` is below 1 or ``depth`` below 0.

    Example:
        >>> import jax
        >>> network = mlp(width=32)(2, 6, key=jax.random.key(0))
        >>> network(jax.numpy.zeros(2)).shape
        (6,)
    """
    expect_whole("nn_width", width, 1)
    expect_whole("nn_depth", depth, 0)

    def factory(in_size: int, out_size: int, *, key: PRNGKeyArray) -> eqx.nn.MLP:
        network = eqx.nn.MLP(in_size, out_size, width, depth, activation, key=key)
        last = lambda m: m.layers[-1]
        return eqx.tree_at(last, network, replace_fn=_zeros) if zero_last else network

    return factory


def resnet(
    width: int = 64, depth: int = 2, *, activation: Activation = jax.nn.relu, zero_last: bool = False
) -> ConditionerFactory:
    r"""A factory of residual networks with gated, pre-activation blocks.

    .. math:: h \leftarrow h + u \odot \mathrm{sigmoid}(v), \qquad
              (u, v) = W_2\, a(W_1\, a(h) + b_1) + b_2,

    between a linear map into ``width`` units and a linear map out. Each block is near the identity at first.

    Args:
        width: Units, everywhere.
        depth: Number of blocks, at least 1.
        activation: a, applied before each linear map of a block and before the last one.
        zero_last: As for :func:`mlp`.

    Returns:
        ``(in_size, out_size, *, key) -> callable``.

    Raises:
        ValueError: If ``width`` or ``depth`` is below 1.

    Source:
        Durkan et al., "Neural spline flows" (NeurIPS 2019), appendix B, without batch normalization.

    Example:
        >>> import jax
        >>> network = resnet(width=32)(2, 6, key=jax.random.key(0))
        >>> network(jax.numpy.zeros(2)).shape
        (6,)
    """
    expect_whole("nn_width", width, 1)
    expect_whole("nn_depth", depth, 1)

    def factory(in_size: int, out_size: int, *, key: PRNGKeyArray) -> "_ResNet":
        first, last, *rest = jr.split(key, 2 + 2 * depth)
        linear = eqx.nn.Linear
        blocks = [
            (linear(width, width, key=a), linear(width, 2 * width, key=b))
            for a, b in zip(rest[::2], rest[1::2], strict=True)
        ]
        out = linear(width, out_size, key=last)
        out = _zeros(out) if zero_last else out
        return _ResNet(linear(in_size, width, key=first), blocks, out, activation)

    return factory


class _ResNet(eqx.Module):
    first: eqx.nn.Linear
    blocks: list[tuple[eqx.nn.Linear, eqx.nn.Linear]]
    last: eqx.nn.Linear
    activation: Callable

    def __call__(self, x):
        h = self.first(x)
        for inner, outer in self.blocks:
            change, gate = jnp.split(outer(self.activation(inner(self.activation(h)))), 2)
            h = h + change * jax.nn.sigmoid(gate)
        return self.last(self.activation(h))


def shared_trunk(
    width: int = 64,
    depth: int = 2,
    head_width: int = 8,
    *,
    activation: Activation = jax.nn.relu,
    zero_last: bool = False,
) -> ConditionerFactory:
    """A factory of networks with one trunk for all outputs, and a narrow last layer.

    The last layer of a plain MLP grows as width × outputs, and with many active coordinates and flexible
    bijectors it is nearly the whole network. Here the trunk ends in ``head_width`` units, from which
    all outputs are computed linearly: width × head_width + head_width × outputs.

    Args:
        width: Units in each hidden layer of the trunk.
        depth: Number of hidden layers of the trunk, at least 1.
        head_width: Units from which the outputs are computed.
        activation: Applied after each hidden layer, and after the narrow one.
        zero_last: As for :func:`mlp`.

    Returns:
        ``(in_size, out_size, *, key) -> callable``.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import jax
        >>> network = shared_trunk(width=32)(2, 600, key=jax.random.key(0))
        >>> network(jax.numpy.zeros(2)).shape
        (600,)
    """
    expect_whole("nn_width", width, 1)
    expect_whole("nn_depth", depth, 1)
    expect_whole("head_width", head_width, 1)

    def factory(in_size: int, out_size: int, *, key: PRNGKeyArray) -> eqx.nn.Sequential:
        trunk_key, head_key = jr.split(key)
        trunk = eqx.nn.MLP(in_size, head_width, width, depth, activation, activation, key=trunk_key)
        head = eqx.nn.Linear(head_width, out_size, key=head_key)
        return eqx.nn.Sequential([trunk, _zeros(head) if zero_last else head])

    return factory


def attention(
    width: int = 32,
    depth: int = 1,
    *,
    heads: int = 4,
    activation: Activation = jax.nn.gelu,
    zero_last: bool = False,
) -> ConditionerFactory:
    r"""A factory of transformers whose tokens are the passive coordinates.

    Coordinate i becomes the token :math:`x_i\, w + e_i` with an embedding of its place. Blocks of
    self-attention and a two-layer network, each after layer normalization and added to its input, let the
    tokens exchange information; the outputs are a linear function of their normalized mean.

    Args:
        width: Size of a token, divisible by ``heads``.
        depth: Number of blocks, at least 1.
        heads: Attention heads.
        activation: Of the two-layer networks.
        zero_last: As for :func:`mlp`.

    Returns:
        ``(in_size, out_size, *, key) -> callable``.

    Raises:
        ValueError: If a size is below 1, or ``width`` does not divide by ``heads``.

    Source:
        Vaswani et al., "Attention is all you need" (NeurIPS 2017), with the normalization first.

    Example:
        >>> import jax
        >>> network = attention()(5, 6, key=jax.random.key(0))
        >>> network(jax.numpy.zeros(5)).shape
        (6,)
    """
    expect_whole("nn_width", width, 1)
    expect_whole("nn_depth", depth, 1)
    if width % expect_whole("heads", heads, 1) != 0:
        raise ValueError(f"`nn_width` must be divisible by `heads` = {heads}; got {width}.")

    def factory(in_size: int, out_size: int, *, key: PRNGKeyArray) -> "_Attention":
        embed, place, last, *rest = jr.split(key, 3 + 2 * depth)
        blocks = [
            (
                eqx.nn.LayerNorm(width),
                eqx.nn.MultiheadAttention(heads, width, key=a),
                eqx.nn.LayerNorm(width),
                eqx.nn.MLP(width, width, 2 * width, 1, activation, key=b),
            )
            for a, b in zip(rest[::2], rest[1::2], strict=True)
        ]
        out = eqx.nn.Linear(width, out_size, key=last)
        scale = jr.normal(embed, (width,))
        places = jr.normal(place, (in_size, width))
        out = _zeros(out) if zero_last else out
        return _Attention(scale, places, blocks, eqx.nn.LayerNorm(width), out)

    return factory


class _Attention(eqx.Module):
    scale: Float[Array, " W"]
    places: Float[Array, "A W"]
    blocks: list[tuple[eqx.nn.LayerNorm, eqx.nn.MultiheadAttention, eqx.nn.LayerNorm, eqx.nn.MLP]]
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear

    def __call__(self, x):
        tokens = x[:, None] * self.scale[None, :] + self.places
        for before, look, after, think in self.blocks:
            normal = jax.vmap(before)(tokens)
            tokens = tokens + look(normal, normal, normal)
            tokens = tokens + jax.vmap(think)(jax.vmap(after)(tokens))
        return self.last(self.norm(tokens.mean(axis=0)))


made, patch_transformer = Made, PatchTransformer  # as the other factories are named


def _zeros(layer: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jnp.zeros_like(a) if eqx.is_array(a) else a, layer)


def set_constant(network: PyTree, output: Float[Array, " out"]) -> PyTree:
    """Return the network with a last layer of zero weights, so that its output is constant.

    Args:
        network: What one of the factories above made.
        output: The constant output, which becomes the bias of the last layer.

    Raises:
        ValueError: If the network does not end in a dense layer with a bias.
    """
    last = lambda n: n.layers[-1] if hasattr(n, "layers") else n.last
    ends = hasattr(network, "layers") or hasattr(network, "last")
    layer: PyTree = last(network) if ends else None
    dense = isinstance(layer, eqx.nn.Linear) and layer.bias is not None
    if not dense:
        raise ValueError(
            f"`conditioner` must end in a dense layer with a bias; got {type(network).__name__}."
        )
    where = lambda n: (last(n).weight, last(n).bias)
    return eqx.tree_at(where, network, (jnp.zeros_like(layer.weight), output.astype(layer.bias.dtype)))


def make(factory: ConditionerFactory, in_size: int, out_size: int, *, key: PRNGKeyArray) -> Callable:
    """Call a factory, and check without running it that what it made fits.

    Raises:
        ValueError: If ``factory`` is not callable, or does not make a callable from a vector of
            ``in_size`` to a vector of ``out_size``.
    """
    expect_key(key)
    kind = type(factory).__name__
    if not callable(factory):
        raise ValueError(
            f"`conditioner` must be a factory (in_size, out_size, *, key) -> callable; got {kind}."
        )
    try:
        network = factory(in_size, out_size, key=key)
    except TypeError as error:
        raise ValueError(f"`conditioner` must be a factory (in_size, out_size, *, key); {error}") from error
    if not callable(network):
        raise ValueError(f"`conditioner` must make a callable network; got {type(network).__name__}.")
    wanted = f"map a vector of size {in_size} to one of size {out_size}"
    try:
        out = eqx.filter_eval_shape(network, jax.ShapeDtypeStruct((in_size,), jnp.result_type(float)))
    except Exception as error:
        raise ValueError(f"`conditioner` must {wanted}; it raised: {error}") from error
    got = getattr(out, "shape", out)
    if got != (out_size,):
        raise ValueError(f"`conditioner` must {wanted}; got output {got}.")
    return network
