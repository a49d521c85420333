"""A distribution made of a base density and a bijection."""

import equinox as eqx
import flowjax.distributions as fd
import jax
import jax.numpy as jnp
from flowjax.bijections import AbstractBijection
from paramax import unwrap

from gauss_flows.bijection import copied
from gauss_flows.compiling import compiled
from gauss_flows.validate import as_floats, expect_whole


class Transformed(fd.Transformed):
    r"""A distribution made of a base density and a bijection: flowjax's ``Transformed``, compiled once.

    ``flow.log_prob(x)`` and ``flow.sample(key, (n,))`` run as one program, which later calls with the same
    shapes find again. Where a row of x holds NaN its log-density is NaN; flowjax's own class gives
    :math:`-\infty`, which ranks a broken row as the least likely of all.

    Args:
        base_dist: The density of the latent variable, a flowjax distribution.
        bijection: A flowjax bijection from latent to data, such as ``Invert`` of a layer of this package.

    Raises:
        ValueError: From the methods, if x, the key or the condition does not fit.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> from flowjax.bijections import Invert
        >>> layer = gf.AffineCoupling(jr.key(0), shape=(2,))
        >>> flow = gf.Transformed(gf.standard_normal(2), Invert(layer))
        >>> flow.log_prob(jnp.array([0.0, jnp.nan]))
        Array(nan, dtype=float32)
    """

    def __init__(self, base_dist: fd.AbstractDistribution, bijection: AbstractBijection):
        super().__init__(base_dist, bijection)

    def log_prob(self, x, condition=None):
        x = self._batch("x", x, self.shape)
        return compiled(fd.Transformed.log_prob, self, x, self._condition(condition))

    def sample(self, key, sample_shape=(), condition=None):
        return self._draw(fd.Transformed.sample, key, sample_shape, condition)

    def sample_and_log_prob(self, key, sample_shape=(), condition=None):
        return self._draw(fd.Transformed.sample_and_log_prob, key, sample_shape, condition)

    def __deepcopy__(self, memo):
        return copied(self)

    def _log_prob(self, x, condition=None):
        log_prob = super()._log_prob(x, condition)
        broken = jnp.isnan(x).any()
        # A flow with NaN among its parameters gives no density either, wherever the point is.
        for array in (condition, *jax.tree.leaves(eqx.filter(self, eqx.is_inexact_array))):
            if array is not None:
                broken |= jnp.isnan(array).any()
        return jnp.where(broken, jnp.nan, log_prob)

    def expect_single(self) -> None:
        """Raise a ``ValueError`` if this is a stack of flows, as ``fit_many`` makes one."""
        base = unwrap(self.base_dist)
        if isinstance(base, fd.Normal) and jnp.ndim(base.loc) > len(self.shape):
            raise ValueError(
                "This is a stack of flows, one for each key, and must be used one at a time: take "
                "`result[i].flow` of what `fit_many` returned, or map over the stack with `eqx.filter_vmap`."
            )

    def _draw(self, method, key, sample_shape, condition):
        self.expect_single()
        typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if not typed or key.shape != ():
            raise ValueError(f"`key` must be one random key, such as jax.random.key(0); it is {key!r}.")
        try:
            sizes = tuple(expect_whole("sample_shape", size, 0) for size in sample_shape)
        except TypeError as error:
            raise ValueError(
                f"`sample_shape` must be a tuple of whole numbers, such as (100,); it is {sample_shape!r}."
            ) from error
        return compiled(method, self, key, sizes, self._condition(condition))

    def _condition(self, condition):
        return None if self.cond_shape is None else self._batch("condition", condition, self.cond_shape)

    def _batch(self, name, value, shape):
        """The argument as a floating-point array whose last axes are ``shape``."""
        self.expect_single()
        if value is None:
            raise ValueError(f"`{name}` must be given, with shape {shape} or a batch of such arrays.")
        array = as_floats(name, value)
        if array.shape[array.ndim - len(shape) :] != shape or array.ndim < len(shape):
            raise ValueError(
                f"The last axes of `{name}` must have shape {shape}; its shape is {array.shape}."
            )
        return array
