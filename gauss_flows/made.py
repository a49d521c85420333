"""Masked networks (MADE): output i depends only on inputs of smaller rank."""

import dataclasses
from collections.abc import Callable
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from gauss_flows.incremental import incremental_inverse
from gauss_flows.masked_network import Degrees, MaskedFactory, MaskedNetwork, expect_degrees
from gauss_flows.validate import expect_whole

Activation = Callable[[Array], Array]


class MaskedMLP(MaskedNetwork):
    r"""A multilayer perceptron whose unit i depends on unit j of the layer before only if its degree allows.

    .. math:: h_l = a\big((W_l \odot M_l)\, h_{l-1} + b_l\big), \qquad
              (M_l)_{ij} = [\, d_l(i) \ge d_{l-1}(j) \,],

    without the activation a in the last layer. So an output depends only on inputs of at most its degree.

    Args:
        degrees: For each layer, the input first, the degree of each unit: whole numbers.
        activation: a, after each hidden layer.
        zero_last: Start the last layer at zero.
        key: Random key.

    Source:
        Germain et al., "MADE: masked autoencoder for distribution estimation" (ICML 2015), section 4.

    Example:
        >>> import jax
        >>> network = MaskedMLP(((0, 1), (0, 0, 1), (-1, 0)), key=jax.random.key(0))
        >>> [mask.astype(int).tolist() for mask in network.masks]
        [[[1, 0], [1, 0], [1, 1]], [[0, 0, 0], [1, 1, 0]]]
    """

    layers: list[eqx.nn.Linear]
    degrees: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    activation: Callable

    def __init__(
        self,
        degrees: tuple[tuple[int, ...], ...],
        *,
        activation: Activation = jax.nn.relu,
        zero_last: bool = False,
        key: PRNGKeyArray,
    ):
        self.degrees, self.activation = degrees, activation
        sizes = pairwise(degrees)
        keys = jr.split(key, len(degrees) - 1)
        self.layers = [eqx.nn.Linear(len(a), len(b), key=k) for (a, b), k in zip(sizes, keys, strict=True)]
        if zero_last:
            self.layers[-1] = jax.tree.map(jnp.zeros_like, self.layers[-1])

    @property
    def masks(self) -> list[Bool[np.ndarray, "out in"]]:
        """Which unit depends on which, layer by layer."""
        return [np.greater_equal.outer(b, a) for a, b in pairwise(self.degrees)]

    @property
    def weights(self) -> list[Float[Array, "out in"]]:
        """The weights with zeros where the masks forbid."""
        return [jnp.where(mask, layer.weight, 0) for layer, mask in zip(self.layers, self.masks, strict=True)]

    def __call__(self, x):
        for i, (layer, weight) in enumerate(zip(self.layers, self.weights, strict=True)):
            x = weight @ (self.activation(x) if i else x) + layer.bias
        return x

    def incremental_inverse(self, bijector, ranks, y, condition):
        return incremental_inverse(self, bijector, ranks, y, condition)


@dataclasses.dataclass(frozen=True)
class Made(MaskedFactory):
    """A factory of masked networks (MADE), the conditioner of autoregressive layers; also named ``made``.

    One pass gives the parameters of all coordinates, each from the coordinates before it.

    Args:
        width: Units in each hidden layer; more than the event has elements, or some see little.
        depth: Number of hidden layers, at least 1.
        activation: Applied after each hidden layer.
        zero_last: As for :func:`mlp`.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> Made(width=128, depth=1).width
        128
    """

    width: int = 64
    depth: int = 2
    _: dataclasses.KW_ONLY
    activation: Activation = jax.nn.relu
    zero_last: bool = False

    def __post_init__(self):
        expect_whole("nn_width", self.width, 1)
        expect_whole("nn_depth", self.depth, 1)

    def __call__(self, inputs: Degrees, outputs: Degrees, *, key: PRNGKeyArray) -> MaskedMLP:
        """The network from the degrees of its inputs and outputs; hidden units share all useful ones."""
        expect_degrees("made", inputs)
        low, high = min(inputs), max(outputs)
        hidden = tuple(low + j * (high - low + 1) // self.width for j in range(self.width))
        layers = (inputs, *[hidden] * self.depth, outputs)
        return MaskedMLP(layers, activation=self.activation, zero_last=self.zero_last, key=key)
