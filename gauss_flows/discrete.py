"""Exact probabilities of images of whole numbers, from one autoregressive layer."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jax.scipy.special import ndtr
from jaxtyping import Array, Float, Int, PRNGKeyArray
from paramax import unwrap

from gauss_flows.autoregressive import MaskedAutoregressive
from gauss_flows.levels import ImageModel, PixelTable, expect_levels, log_prob
from gauss_flows.validate import Given, Shape

FLOOR = 1e-5  # added to every probability: a level that the model excludes would cost infinitely many bits


class DiscreteAutoregressive(ImageModel):
    r"""An exact distribution of images of whole numbers, from one autoregressive layer.

    .. math:: P(k) &= \prod_i P_i(k_i), \\
              P_i(l) &= (1 - L\epsilon)\, C_i(l) + \epsilon, \\
              C_i(l) &= \Phi(T_{\theta_i}(e_{l+1})) - \Phi(T_{\theta_i}(e_l)), \\
              \theta_i &= \theta_i(\{m(k_j) : r_j < r_i\}, c).

    The layer acts on normal scores (:class:`~gauss_flows.levels.PixelTable`): :math:`e_l` are the borders of
    a pixel's cells, from :math:`-\infty` to :math:`\infty`, and the network takes the middles m of the cells
    of earlier pixels as its input. So :math:`P_i` depends on levels alone, the integral over a cell is a
    difference of the CDF, and no noise is needed. With one layer the cells stay intervals; a second layer
    would mix them, and only a bound could be computed (:class:`~gauss_flows.Dequantize`). The floor
    :math:`\epsilon = 10^{-5}` bounds what a level can cost.

    ``gf.fit(key, model, images)`` trains the layer. :func:`~gauss_flows.compress` writes images into a file
    of :math:`-\log_2 P` bits.

    Args:
        layer: A :class:`~gauss_flows.MaskedAutoregressive` layer of the image's shape, with an increasing
            bijector; with :class:`~gauss_flows.MixtureGaussianCDF` each :math:`P_i` is a mixture.
        levels: L, 2 to 256.
        images: Training images, of which the shares of the levels are counted, shape (n, \*shape). Default:
            none, and every level has the share 1/L.

    Raises:
        ValueError: If an argument does not fit.

    Source:
        Salimans et al., "PixelCNN++" (ICLR 2017), section 2.1, for probabilities as differences of a CDF.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> layer = gf.MaskedAutoregressive(jr.key(0), (2,), bijector=gf.MixtureGaussianCDF(3))
        >>> model = gf.DiscreteAutoregressive(layer, levels=3)
        >>> print(f"{jnp.exp(model.log_prob(jnp.indices((3, 3)).reshape(2, 9).T)).sum():.4f}")
        1.0000
    """

    layer: MaskedAutoregressive
    table: PixelTable
    levels: int = eqx.field(static=True)
    exact: ClassVar[bool] = True

    def __init__(self, layer: MaskedAutoregressive, levels: int, *, images: Given = None):
        if not isinstance(layer, MaskedAutoregressive):
            raise ValueError(
                "`layer` must be one MaskedAutoregressive layer, whose differences of the CDF are exact "
                f"probabilities; got {type(layer).__name__}."
            )
        self.layer, self.levels = layer, expect_levels(levels, 256)
        _expect_increasing(layer)
        self.table = PixelTable(layer.shape, levels, images)

    @property
    def shape(self) -> Shape:
        """The shape of one image."""
        return self.layer.shape

    @property
    def cond_shape(self) -> Shape | None:
        """The shape of the layer's condition, None if it has none."""
        return self.layer.cond_shape

    @property
    def steps(self) -> Int[np.ndarray, "R m"]:
        """The pixels of each rank, as places in the flat image; short rows end in D, which is no place."""
        ranks = self.layer.order.ravel()
        rows = [np.flatnonzero(ranks == rank) for rank in range(self.layer.passes)]
        longest = max(map(len, rows))
        return np.stack([np.pad(row, (0, longest - len(row)), constant_values=len(ranks)) for row in rows])

    def log_prob(self, images: Given, condition: Given = None) -> Float[Array, " n"]:
        """Return log P(k), in nats, for each image.

        Args:
            images: Whole numbers from 0 to levels - 1, shape (n, \\*shape).
            condition: One row per image, where the layer has conditions.

        Raises:
            ValueError: If an argument does not fit.
        """
        return log_prob(self, images, condition, jr.key(0), 1)

    def _theta(self, k, condition, weight=1.0):
        """The parameters of all pixels, one row each, from the levels of an image."""
        return unwrap(self.layer).theta(weight * self.table.midpoints(k).ravel(), condition)

    def _log_prob(self, k, condition, key):
        return self.log_prob_of(self._theta(k, condition), k)

    def log_prob_of(self, theta: Float[Array, "D P"], k: Int[Array, "*shape"]) -> Float[Array, ""]:
        """Return the log-probability of an image's levels under given parameters of the bijectors.

        Args:
            theta: The parameters, one row per pixel.
            k: The levels.
        """
        flat = k.ravel()
        edges = self.table.edges.reshape(len(flat), -1)
        at = lambda place: jnp.take_along_axis(edges, place[:, None], axis=1)[:, 0]
        lower, upper = flat > 0, flat < self.levels - 1  # whether the cell has a finite border
        a, b = (self._scores(theta, at(jnp.clip(place, 0, self.levels - 2))) for place in (flat - 1, flat))
        below, above = jnp.where(lower, ndtr(a), 0), jnp.where(upper, ndtr(-b), 0)
        # The difference is taken in the smaller tail, where it does not cancel.
        left = jnp.where(upper, ndtr(b), 1) - below
        right = jnp.where(lower, ndtr(-a), 1) - above
        inside = jnp.where(below < 0.5, left, right)
        return jnp.log((1 - self.levels * FLOOR) * jnp.maximum(inside, 0) + FLOOR).sum()

    def _scores(self, theta, edges):
        return self.layer._bijector.transform(theta, edges)[0]

    def cdf(
        self, k: Int[Array, "*shape"], places: Int[Array, " m"], condition: Float[Array, " C"] | None = None
    ) -> Float[Array, "m L+1"]:
        """Return, for some pixels, the probabilities of fewer than 0, 1, …, L levels given earlier pixels.

        Args:
            k: The levels of an image; pixels of equal or larger rank make no difference.
            places: The pixels, as places in the flat image; D, which is no place, gives the last pixel's.
            condition: The condition, where the layer has one.
        """
        places = jnp.minimum(places, k.size - 1)
        theta = self._theta(k, condition)[places]
        edges = self.table.edges.reshape(-1, self.levels - 1)[places]
        inner = ndtr(jax.vmap(self._scores, (None, 1), 1)(theta, edges))
        ends = jnp.zeros_like(inner[:, :1])
        exact = jnp.concatenate([ends, inner, ends + 1], axis=1)
        floor = FLOOR * jnp.arange(self.levels + 1, dtype=inner.dtype)[None]
        return (1 - self.levels * FLOOR) * exact + floor

    def _draw(self, key, condition):
        steps, size = self.steps, math.prod(self.shape)

        def step(flat, rank):
            places, key = rank
            u = jr.uniform(key, places.shape, float)
            cdf = self.cdf(flat.reshape(self.shape), places, condition)
            new = (u[:, None] >= cdf[:, 1:-1]).sum(axis=1)
            new = jnp.where(jnp.isnan(cdf).any(axis=1), -1, new).astype(flat.dtype)
            return flat.at[places].set(new, mode="drop"), None

        start = jnp.zeros(size, jnp.int32)
        return lax.scan(step, start, (jnp.asarray(steps), jr.split(key, len(steps))))[0].reshape(self.shape)


@dataclass(frozen=True)
class _InputDropout:
    """The loss that :func:`input_dropout` returns; equal settings are equal, so that programs are shared."""

    rate: float

    def __call__(self, model, images, condition, key):
        if not isinstance(model, DiscreteAutoregressive):
            raise ValueError(
                "`loss` input_dropout is for a DiscreteAutoregressive model alone; this one is a "
                f"{type(model).__name__}."
            )

        def of_image(k, condition, key):
            weight = jr.bernoulli(key, 1 - self.rate, (k.size,)) / (1 - self.rate)
            return model.log_prob_of(model._theta(k, condition, weight), k)

        axes = (0, None if condition is None else 0, 0)
        keys = jr.split(key, len(images))
        return -jax.vmap(of_image, axes)(images.astype(jnp.int32), condition, keys).mean()


def input_dropout(
    rate: float = 0.1,
) -> Callable[[DiscreteAutoregressive, Array, Array | None, PRNGKeyArray], Array]:
    r"""A loss for :func:`~gauss_flows.fit` that keeps a discrete model from memorizing its training images.

    At each step each pixel is hidden from the network with probability ``rate``: its score is 0, the median,
    and the others are divided by 1 - rate. The probabilities that are averaged are still those of the whole
    image. Held-out images are judged under the same loss, which is a little larger than the model's own.

    Args:
        rate: The probability that a pixel is hidden, at least 0 and below 1.

    Returns:
        A function ``(model, images, condition, key) -> loss``.

    Raises:
        ValueError: If the rate is out of its range; from the loss, if the model is another.

    Source:
        Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting" (JMLR 2014).

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> layer = gf.MaskedAutoregressive(jr.key(0), (2,), bijector=gf.Affine(), nn_width=4)
        >>> model, images = gf.DiscreteAutoregressive(layer, 4), jr.randint(jr.key(1), (99, 2), 0, 4)
        >>> options = {"steps": 5, "batch_size": 10, "progress": False}
        >>> gf.fit(jr.key(2), model, images, loss=gf.input_dropout(), **options).train_loss.shape
        (5,)
    """
    within = isinstance(rate, Real) and 0 <= rate < 1
    if not within:
        raise ValueError(f"`rate` must be at least 0 and below 1; got {rate!r}.")
    return _InputDropout(float(rate))


def _expect_increasing(layer) -> None:
    """Refuse a decreasing bijector, under which differences of the CDF would be negative."""
    parametrized = unwrap(layer)._bijector
    theta = parametrized.theta(jnp.zeros((2, parametrized.size)))
    z, _ = parametrized.transform(theta, jnp.array([-1.0, 1.0]))
    if not isinstance(z, jax.core.Tracer) and not z[0] < z[1]:
        raise ValueError(
            f"`layer` must have an increasing bijector; it maps -1 and 1 to {z[0]:g} and {z[1]:g}."
        )
