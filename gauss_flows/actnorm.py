"""ActNorm: an affine map of each coordinate, set once from the data that reaches it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from flowjax.bijections import Chain, Invert, Scan
from flowjax.distributions import Transformed
from jaxtyping import Array, Float

from gauss_flows.base import Bijection, Shape, expect_data, expect_shape


class ActNorm1D(Bijection):
    r"""Scale and shift each coordinate, :math:`z = e^{s} \odot x + b`; it starts as the identity.

    Use :func:`data_init` to set s and b so that the data that reaches the layer leaves it with mean 0
    and standard deviation 1. Without that the layer is just two more parameters a coordinate.

    Args:
        shape: The event's shape.

    Source:
        Kingma and Dhariwal, "Glow" (NeurIPS 2018), section 3.1.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp
        >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
        >>> layer = gf.data_init(gf.ActNorm1D((2,)), x)
        >>> layer.transform(x[0])
        Array([-1., -1.], dtype=float32)
    """

    shape: Shape = eqx.field(static=True)
    cond_shape: None = eqx.field(static=True)
    log_scale: Float[Array, "*shape"]
    bias: Float[Array, "*shape"]

    def __init__(self, shape: Shape):
        self.shape, self.cond_shape = expect_shape(shape), None
        self.log_scale, self.bias = jnp.zeros(self.shape), jnp.zeros(self.shape)

    def transform_and_log_det(self, x, condition=None):
        return x * jnp.exp(self.log_scale) + self.bias, self.log_scale.sum()

    def inverse_and_log_det(self, y, condition=None):
        return (y - self.bias) * jnp.exp(-self.log_scale), -self.log_scale.sum()


def data_init(flow: Any, x: Float[Array, "n *shape"], condition: Array | None = None) -> Any:
    """The same flow with every :class:`ActNorm1D` set from the data that reaches it.

    A pure pass: nothing is changed in place, and all else stays as it was. It goes through flowjax's
    ``Transformed``, ``Chain``, ``Scan`` and ``Invert``, in the direction from data to latent; other
    bijections are applied as they are. A coordinate without spread keeps scale 1.

    Args:
        flow: A ``Transformed`` distribution, or a bijection that takes data to latent.
        x: Data, one row an event, at least two rows.
        condition: One row a row of x, for conditional flows.

    Returns:
        A flow of the same structure.

    Raises:
        ValueError: If x has not two rows of the event's shape or more, or is not finite floating point, or
            the condition does not fit.
    """
    x, condition = expect_data(flow, x, condition)
    change = lambda part, x, _condition, forward: (
        standardize(part, x, forward=forward) if isinstance(part, ActNorm1D) else part
    )
    return walk(flow, x, condition, change)[0]


def standardize(layer: ActNorm1D, x: Float[Array, "n *shape"], *, forward: bool = True) -> ActNorm1D:
    """The layer set so that what leaves it, forward or backward, has mean 0 and standard deviation 1."""
    mean, std = x.mean(axis=0), x.std(axis=0)
    std = jnp.where(std > 0, std, 1)
    values = (-jnp.log(std), -mean / std) if forward else (jnp.log(std), mean)
    return eqx.tree_at(lambda b: (b.log_scale, b.bias), layer, values)


def walk(
    bijection: Any, x: Array, condition: Array | None, change: Callable, *, forward: bool = True
) -> tuple[Any, Array]:
    """Change a bijection's parts in the order in which the data meets them.

    Args:
        bijection: A flow, or any flowjax bijection; ``Chain``, ``Scan`` and ``Invert`` are gone into.
        x: Data, one row an event.
        condition: One row a row of x, or none.
        change: ``(part, x, condition, forward) -> part``, of the same structure; x is what reaches it.
        forward: Whether the data goes through ``transform``.

    Returns:
        The changed bijection, and the data that leaves it.
    """
    if isinstance(bijection, (Invert, Transformed)):  # a flow's bijection goes from base to data
        inner, x = walk(bijection.bijection, x, condition, change, forward=not forward)
        return eqx.tree_at(lambda b: b.bijection, bijection, inner), x
    if isinstance(bijection, Chain):
        parts = list(bijection.bijections)
        for i in range(len(parts)) if forward else reversed(range(len(parts))):
            parts[i], x = walk(parts[i], x, condition, change, forward=forward)
        return eqx.tree_at(lambda b: b.bijections, bijection, tuple(parts)), x
    if isinstance(bijection, Scan):
        arrays, static = eqx.partition(bijection.bijection, eqx.is_array)

        def step(x, arrays):
            layer, x = walk(eqx.combine(arrays, static), x, condition, change, forward=forward)
            return x, eqx.filter(layer, eqx.is_array)

        x, arrays = jax.lax.scan(step, x, arrays, reverse=not forward)
        return eqx.tree_at(lambda b: b.bijection, bijection, eqx.combine(arrays, static)), x
    bijection = change(bijection, x, condition, forward)
    method = bijection.transform if forward else bijection.inverse
    return bijection, jax.vmap(method, (0, None if condition is None else 0))(x, condition)
