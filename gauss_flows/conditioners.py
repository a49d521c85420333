"""The second choice: which network predicts the bijector's parameters.

A conditioner is any callable from a vector of ``in_size`` to a vector of ``out_size``; it is never
inverted. A *factory* ``(in_size, out_size, *, key) -> callable`` makes one, so that a layer can size
it. Any function of that signature fits wherever ``conditioner=`` stands.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from gauss_flows.base import expect, expect_whole

ConditionerFactory = Callable[..., Callable[[jax.Array], jax.Array]]


def mlp(
    width: int = 64,
    depth: int = 2,
    *,
    activation: Callable[[Any], Any] = jax.nn.relu,
    zero_last: bool = False,
) -> ConditionerFactory:
    """A factory of multilayer perceptrons: equinox's ``nn.MLP`` with its default initialisation.

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
        if not zero_last:
            return network
        last = lambda m: (m.layers[-1].weight, m.layers[-1].bias)
        return eqx.tree_at(last, network, replace_fn=jnp.zeros_like)

    return factory


def make(factory: Any, in_size: int, out_size: int, *, key: PRNGKeyArray) -> Callable:
    """Call a factory, and check without running it that what it made fits.

    Raises:
        ValueError: If ``factory`` is not callable, or does not make a callable from a vector of
            ``in_size`` to a vector of ``out_size``.
    """
    expect(
        callable(factory), "conditioner", "be a factory (in_size, out_size, *, key) -> callable",
        type(factory).__name__,
    )  # fmt: skip
    try:
        network = factory(in_size, out_size, key=key)
    except TypeError as error:
        raise ValueError(f"`conditioner` must be a factory (in_size, out_size, *, key); {error}") from error
    expect(callable(network), "conditioner", "make a callable network", type(network).__name__)
    dtype = jnp.result_type(float)
    probe = jax.ShapeDtypeStruct((in_size,), dtype)
    try:
        out = eqx.filter_eval_shape(network, probe)
    except Exception as error:
        raise ValueError(
            f"`conditioner` must make a network for a vector of size {in_size}; it raised: {error}"
        ) from error
    expect(
        getattr(out, "shape", None) == (out_size,),
        "conditioner",
        f"map a vector of size {in_size} to one of size {out_size}",
        f"output {getattr(out, 'shape', out)}",
    )
    return network


__all__ = ["ConditionerFactory", "make", "mlp"]
