"""The class of distributions whose density and entropy are known."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.distributions import AbstractDistribution
from jaxtyping import Array, ArrayLike, Float

from gauss_flows.validate import Shape, as_floats


@dataclass(frozen=True, eq=False)
class _Made:
    """A function equal to any other that was made from an equal recipe, so that both share programs."""

    function: Callable
    recipe: Hashable

    def __call__(self, *args):
        return self.function(*args)

    def __eq__(self, other):
        return isinstance(other, _Made) and self.recipe == other.recipe

    def __hash__(self):
        return hash(self.recipe)


@dataclass(frozen=True, eq=False)
class _Once:
    """A function without arguments that keeps its value."""

    function: Callable[[], float]

    def __call__(self) -> float:
        return self._value

    @cached_property
    def _value(self) -> float:
        return self.function()


class Target(AbstractDistribution):
    """A distribution whose density, mean, standard deviation and entropy are known.

    Args:
        shape: The event's shape, (D,).
        log_density: The normalized log-density of one event, computed in its type.
        sampler: Takes a key, gives one event.
        moments: The mean and the standard deviation of each coordinate.
        entropy: Gives the entropy; not called before it is needed.
        components: Of a mixture of Gaussians, the means and the standard deviations, both of shape (K, D),
            and the weights, shape (K,). Default: it is no mixture.
        recipe: What the functions are made from, hashable: targets of equal recipes are equal. Default: a
            target is equal to itself alone.
    """

    shape: Shape = eqx.field(static=True)
    log_density: _Made = eqx.field(static=True)
    sampler: _Made = eqx.field(static=True)
    moments: tuple[tuple[float, ...], tuple[float, ...]] = eqx.field(static=True)
    entropy_of: _Made = eqx.field(static=True)
    components_of: _Made = eqx.field(static=True)
    cond_shape: ClassVar[None] = None  # type: ignore[misc]

    def __init__(self, shape, log_density, sampler, moments, entropy, recipe=None, components=None):
        recipe = object() if recipe is None else recipe
        self.shape = shape
        self.log_density, self.sampler = _Made(log_density, recipe), _Made(sampler, recipe)
        mean, std = (tuple(np.broadcast_to(m, shape).tolist()) for m in moments)
        self.moments, self.entropy_of = (mean, std), _Made(_Once(entropy), recipe)
        self.components_of = _Made(lambda: components, recipe)

    @property
    def mean(self) -> Float[np.ndarray, " D"]:
        """The mean of each coordinate, in double precision."""
        return np.array(self.moments[0])

    @property
    def std(self) -> Float[np.ndarray, " D"]:
        """The standard deviation of each coordinate, in double precision."""
        return np.array(self.moments[1])

    @property
    def entropy(self) -> float:
        r"""The differential entropy :math:`-E[\log p(x)]`, in nats."""
        return self.entropy_of()

    def standardized(self) -> "Target":
        r"""The distribution of :math:`(x - m) / s`, with m the mean and s the standard deviation.

        Example:
            >>> import gauss_flows as gf
            >>> print(f"{gf.targets.funnel(2).standardized().entropy:.4f}")
            0.5879
        """
        log_scale = float(np.log(self.std).sum())
        like = lambda x: (jnp.asarray(self.mean, x.dtype), jnp.asarray(self.std, x.dtype))

        def log_density(z):
            mean, std = like(z)
            return self.log_density(mean + std * z) + log_scale

        def sampler(key):
            x = self.sampler(key)
            mean, std = like(x)
            return (x - mean) / std

        entropy = lambda: self.entropy - log_scale
        recipe = ("standardized", self.log_density.recipe)
        components = self.components_of()
        if components is not None:
            means, scales, weights = components
            components = ((means - self.mean) / self.std, scales / self.std, weights)
        return Target(self.shape, log_density, sampler, (0.0, 1.0), entropy, recipe, components)

    def velocity(
        self, t: ArrayLike, x: Float[Array, " D"], condition: Float[Array, " C"] | None = None
    ) -> Float[Array, " D"]:
        r"""Return the exact velocity that carries standard normal noise to this distribution on linear paths.

        .. math:: v(t, x) = E[x_1 - x_0 \mid (1 - t)\,x_0 + t\,x_1 = x], \qquad
                  x_0 \sim N(0, I), \quad x_1 \sim p \text{ independent}.

        For a mixture of Gaussians with weights :math:`\pi_k`, means :math:`m_k` and standard deviations
        :math:`\sigma_k`, the path has at time t the components :math:`N(t m_k, s_k^2)`, where
        :math:`s_k^2 = (1 - t)^2 + t^2 \sigma_k^2`, and

        .. math:: v(t, x) = \sum_k r_k \Big[ m_k + \frac{t \sigma_k^2 - (1 - t)}{s_k^2} (x - t m_k) \Big],

        where :math:`r_k` is the probability of component k given x.

        Args:
            t: The time, from 0 (noise) to 1 (this distribution).
            x: One point.
            condition: Not used; it makes this a velocity for :class:`~gauss_flows.FlowODE`.

        Returns:
            The velocity, shape (D,), in the type of x.

        Raises:
            ValueError: If the distribution is no mixture of Gaussians, or t lies outside of [0, 1].

        Source:
            Lipman et al., "Flow matching for generative modeling" (ICLR 2023), theorem 1, for Gaussians.

        Example:
            >>> import gauss_flows as gf, jax.numpy as jnp
            >>> print(gf.targets.gaussian_mixture([[2.0, 0.0]]).velocity(0.0, jnp.zeros(2)))
            [2. 0.]
        """
        components = self.components_of()
        if components is None:
            raise ValueError("This target is no mixture of Gaussians, and its velocity has no formula here.")
        x, t = as_floats("x", x), as_floats("t", t)
        if x.shape != self.shape:
            raise ValueError(
                f"`x` must be one point of shape {self.shape} (jax.vmap maps over more); got {x.shape}."
            )
        if t.shape != ():
            raise ValueError(f"`t` must be one number; got shape {t.shape}.")
        if not isinstance(t, jax.core.Tracer) and not 0 <= float(t) <= 1:
            raise ValueError(f"`t` must lie between 0 and 1; got {t}.")
        t = t.astype(x.dtype)
        means, scales, weights = (jnp.asarray(array, x.dtype) for array in components)
        variance = (1 - t) ** 2 + t**2 * scales**2
        apart = x[None] - t * means
        log_share = jnp.log(weights) - 0.5 * (jnp.log(variance) + apart**2 / variance).sum(axis=1)
        share = jax.nn.softmax(log_share)
        return share @ (means + (t * scales**2 - (1 - t)) / variance * apart)

    def log_prob(self, x, condition=None):
        return super().log_prob(as_floats("x", x), condition)

    def _log_prob(self, x, condition=None):
        return self.log_density(x)

    def _sample(self, key, condition=None):
        return self.sampler(key)
