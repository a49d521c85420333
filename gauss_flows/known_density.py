"""The class of distributions whose density and entropy are known."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from flowjax.distributions import AbstractDistribution
from jaxtyping import Float

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
        recipe: What the functions are made from, hashable: targets of equal recipes are equal. Default: a
            target is equal to itself alone.
    """

    shape: Shape = eqx.field(static=True)
    log_density: _Made = eqx.field(static=True)
    sampler: _Made = eqx.field(static=True)
    moments: tuple[tuple[float, ...], tuple[float, ...]] = eqx.field(static=True)
    entropy_of: _Made = eqx.field(static=True)
    cond_shape: ClassVar[None] = None  # type: ignore[misc]

    def __init__(self, shape, log_density, sampler, moments, entropy, recipe=None):
        recipe = object() if recipe is None else recipe
        self.shape = shape
        self.log_density, self.sampler = _Made(log_density, recipe), _Made(sampler, recipe)
        mean, std = (tuple(np.broadcast_to(m, shape).tolist()) for m in moments)
        self.moments, self.entropy_of = (mean, std), _Made(_Once(entropy), recipe)

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
        return Target(self.shape, log_density, sampler, (0.0, 1.0), entropy, recipe)

    def log_prob(self, x, condition=None):
        return super().log_prob(as_floats("x", x), condition)

    def _log_prob(self, x, condition=None):
        return self.log_density(x)

    def _sample(self, key, condition=None):
        return self.sampler(key)
