"""Images of whole numbers: their checks, their normal scores, and what all models of them share."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gauss_flows.compiling import compiled
from gauss_flows.normal import normal_quantile
from gauss_flows.validate import Given, Shape, as_floats, expect_concrete, expect_key, expect_whole

_BATCH = 256  # images that are scored at once, since all draws of many would not fit in memory


def expect_images(images: Given, shape: Shape, levels: int, at_least: int = 1) -> Int[np.ndarray, "n *shape"]:
    """Return images as integers, or say why they are no images of so many levels.

    Args:
        images: Whole numbers from 0 to levels - 1, of any real type.
        shape: The shape of one image.
        levels: L, the number of levels.
        at_least: The least number of images.

    Raises:
        ValueError: If there are fewer images, they have another shape, or an entry is no whole number
            between 0 and levels - 1.
    """
    array = expect_concrete("images", images)
    if array.ndim < 1 or array.shape[1:] != shape or len(array) < at_least:
        wanted = str(("n", *shape)).replace("'", "")
        raise ValueError(f"`images` must have shape {wanted} with n ≥ {at_least}; got {array.shape}.")
    numbers = array.astype(np.float64)
    with np.errstate(invalid="ignore"):
        bad = ~((numbers == np.floor(numbers)) & (numbers >= 0) & (numbers < levels))
    if bad.any():
        raise ValueError(
            f"`images` must hold whole numbers from 0 to {levels - 1}, one of {levels} levels; got "
            f"{numbers[bad][0]:g}, and {int(bad.sum())} of {bad.size} entries are no such number."
        )
    return numbers.astype(np.int32)


class PixelTable(eqx.Module):
    r"""How often each pixel has each level, and the map from levels to normal scores that follows.

    .. math:: v = \Phi^{-1}\Big(\sum_{l < k} t_l + u\, t_k\Big), \qquad
              \log\frac{dv}{dy} = \log t_k - \log\varphi(v), \qquad y = k + u,

    where :math:`t_k` is the share of level k, with one more than counted, and u in (0, 1) says where in its
    cell :math:`[k, k + 1)` the number y lies. For images like those counted, each v is standard normal. All
    is computed with logarithms of the smaller tail, so that no u is clipped.

    Args:
        shape: The shape of one image.
        levels: L, the number of levels, 2 to 65,536.
        images: Images to count, shape (n, \*shape). Default: none, and each level has the share 1/L.

    Raises:
        ValueError: If an argument does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> table = PixelTable((1,), 3, jnp.array([[0], [2], [2]]))
        >>> table.counts.tolist()
        [[2, 1, 3]]
    """

    counts: Int[Array, "*shape L"]  # integers, so that training leaves them as they are

    def __init__(self, shape: Shape, levels: int, images: Given = None):
        levels = expect_levels(levels)
        size = math.prod(shape)
        counts = np.zeros(size * levels, int)
        if images is not None:
            flat = expect_images(images, shape, levels).reshape(-1, size)
            counts = np.bincount((flat + levels * np.arange(size)[None]).ravel(), minlength=size * levels)
        self.counts = jnp.asarray(1 + counts.reshape(*shape, levels), jnp.int32)

    @property
    def edges(self) -> Float[Array, "*shape L-1"]:
        """The normal scores of the borders between neighboring levels of each pixel."""
        below = jnp.cumsum(self.counts, axis=-1)
        share = lambda count: jnp.log(count.astype(float) / below[..., -1:].astype(float))
        inner = below[..., :-1]
        return normal_quantile(share(inner), share(below[..., -1:] - inner))

    def scores(
        self, k: Int[Array, "*shape"], log_u: Float[Array, "*shape"], log_rest: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        """Return the normal scores v of an image's levels, and the logarithms of the levels' shares.

        Args:
            k: The levels.
            log_u: The logarithm of u, in (0, 1).
            log_rest: The logarithm of 1 - u.
        """
        take = lambda counts: jnp.take_along_axis(counts, k[..., None], axis=-1)[..., 0].astype(float)
        through = jnp.cumsum(self.counts, axis=-1)
        total, upto, here = through[..., -1].astype(float), take(through), take(self.counts)
        log_share = lambda count: jnp.log(count / total)  # the log of 0 is right: there is nothing below
        log_t = log_share(here)
        log_cdf = jnp.logaddexp(log_share(upto - here), log_t + log_u)
        log_sf = jnp.logaddexp(log_share(total - upto), log_t + log_rest)
        return normal_quantile(log_cdf, log_sf), log_t

    def midpoints(self, k: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Return the normal scores of the middles of the levels' cells, u = 1/2."""
        half = jnp.full(k.shape, math.log(0.5))
        return self.scores(k, half, half)[0]

    def quantize(self, v: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
        """Return the levels in whose cells normal scores lie, and -1 where they are NaN."""
        return jnp.where(jnp.isnan(v), -1, (v[..., None] >= self.edges).sum(axis=-1)).astype(jnp.int32)


def expect_levels(levels: Given, at_most: int = 2**16) -> int:
    """Return a number of levels, or say why it is none."""
    if expect_whole("levels", levels, 2) > at_most:
        raise ValueError(f"`levels` must be at most {at_most}; got {levels}.")
    return int(levels)


class ImageModel(eqx.Module):
    """What the models of images of whole numbers share: the checks of their arguments.

    Subclasses have ``shape`` and ``cond_shape``, so that :func:`~gauss_flows.fit` trains them as they are.
    """

    table: eqx.AbstractVar[PixelTable]
    levels: eqx.AbstractVar[int]
    exact: ClassVar[bool]  # whether the probability of an image is known, and not only a bound

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """The shape of one image."""

    @property
    @abstractmethod
    def cond_shape(self) -> Shape | None:
        """The shape of the condition of one image, None if the model has none."""

    @abstractmethod
    def _log_prob(self, k, condition, key):
        """The log-probability of one image, k its levels, or its estimate by one draw."""

    @abstractmethod
    def _draw(self, key, condition):
        """One image."""

    def images(self, images: Given, at_least: int = 1) -> Int[np.ndarray, "n *shape"]:
        """Return images as integers, or say why they do not fit this model; see :func:`expect_images`."""
        return expect_images(images, self.shape, self.levels, at_least)

    def training_log_prob(
        self, images: Array, condition: Array | None, key: PRNGKeyArray
    ) -> Float[Array, " n"]:
        """Return what :func:`~gauss_flows.fit` maximizes, for each image: one draw of :meth:`_log_prob`.

        Args:
            images: Levels, shape (n, \\*shape), checked before; NaN is returned for other numbers.
            condition: One row per image, where the model has conditions.
            key: Random key.
        """
        k = images.astype(jnp.int32)
        axes = (0, None if condition is None else 0, 0)
        log_prob = jax.vmap(self._log_prob, axes)(k, condition, jr.split(key, len(images)))
        good = (k == images) & (k >= 0) & (k < self.levels)
        return jnp.where(good.reshape(len(k), -1).all(axis=1), log_prob, jnp.nan)

    def sample(self, key: PRNGKeyArray, n: int = 1, condition: Given = None) -> Int[Array, "n *shape"]:
        """Return images of whole numbers.

        Args:
            key: Random key.
            n: Number of images.
            condition: One row per image, shape (n, \\*cond_shape), where the model has conditions.

        Raises:
            ValueError: If an argument does not fit, or the model's parameters are not finite.
        """
        self.expect_single()
        n = expect_whole("n", n, 1)
        keys = jr.split(expect_key(key), n)
        k = compiled(_sample, self, keys, self.conditions(condition, n))
        return expect_levels_of_numbers(
            k, "`model` must have finite parameters; it gives samples that are NaN."
        )

    def conditions(self, condition: Given, n: int) -> Float[Array, "n C"] | None:
        """Return the conditions of n images as an array, or say why they do not fit."""
        if self.cond_shape is None:
            if condition is not None:
                raise ValueError("`condition` must be None for a model without conditions.")
            return None
        wanted = (n, *self.cond_shape)
        array = None if condition is None else as_floats("condition", condition)
        if array is None or array.shape != wanted:
            got = None if array is None else array.shape
            raise ValueError(f"`condition` must have shape {wanted}, one row per image; got {got}.")
        if not isinstance(array, jax.core.Tracer):
            bad = int((~np.isfinite(array)).reshape(n, -1).any(axis=1).sum())
            if bad:
                raise ValueError(f"`condition` must be finite; got NaN or infinity in {bad} of {n} rows.")
        return array

    def expect_single(self) -> None:
        """Raise a ``ValueError`` if this is a stack of models, as ``fit_many`` makes one."""
        if self.table.counts.ndim != len(self.shape) + 1:
            raise ValueError(
                "This is a stack of models, one for each key, and must be used one at a time: take "
                "`result[i].flow` of what `fit_many` returned."
            )


def expect_levels_of_numbers(k: Int[Array, "n *shape"], message: str) -> Int[Array, "n *shape"]:
    """Return levels, or raise an error with the message where one is -1, which stands for NaN."""
    if not isinstance(k, jax.core.Tracer) and bool((k < 0).any()):
        raise ValueError(message)
    return k


def _sample(model, keys, condition):
    return _rows(model._draw, keys, condition)


def _rows(function: Callable, *rows):
    """The function of each row, in batches; rows that are None are None for all."""
    return lax.map(lambda row: function(*row), rows, batch_size=_BATCH)


def log_prob(
    model: ImageModel, images: Given, condition: Given, key: PRNGKeyArray, draws: int
) -> Float[Array, " n"]:
    """Return the log of the mean over draws of a model's estimates of the probability, image by image.

    Args:
        model: The model.
        images: Images, shape (n, \\*shape).
        condition: One row per image, where the model has conditions.
        key: Random key.
        draws: Number of draws, at least 1.
    """
    model.expect_single()
    k = jnp.asarray(model.images(images))
    condition = model.conditions(condition, len(k))
    keys = jr.split(expect_key(key), len(k))
    return compiled(_log_probs, model, k, condition, keys, expect_whole("draws", draws, 1))


def _log_probs(model, k, condition, keys, draws):
    def of_image(k, condition, key):
        def step(total, key):
            return jnp.logaddexp(total, model._log_prob(k, condition, key)), None

        return lax.scan(step, jnp.asarray(-jnp.inf, float), jr.split(key, draws))[0] - math.log(draws)

    return _rows(of_image, k, condition, keys)


class BitsPerDim(NamedTuple):
    """Bits per pixel of images of whole numbers, averaged over images, and the standard error."""

    bits: float
    standard_error: float


def bits_per_dim(
    model: ImageModel,
    images: Given,
    key: PRNGKeyArray | None = None,
    *,
    draws: int = 1,
    condition: Given = None,
) -> BitsPerDim:
    r"""Return how many bits per pixel a model assigns to images of whole numbers, and the standard error.

    .. math:: -\frac{1}{n D \log 2} \sum_{i=1}^n \log \Big(\frac1m \sum_{j=1}^m w_{ij}\Big),

    where :math:`w_{ij}` is an unbiased estimate of the probability of image i, from the j-th of m draws of
    its noise. The logarithm of a mean is at least the mean of the logarithms, so the expectation is an upper
    bound of the true bits; it falls as m grows. For a :class:`~gauss_flows.DiscreteAutoregressive` model
    probabilities are exact, and neither a key nor draws are needed.

    Args:
        model: A :class:`~gauss_flows.Dequantize` or :class:`~gauss_flows.DiscreteAutoregressive` model.
        images: Whole numbers from 0 to levels - 1, shape (n, \*shape) with n ≥ 2.
        key: Random key of the noise.
        draws: m, at least 1.
        condition: One row per image, for conditional models.

    Returns:
        The mean over images, and its standard error: the standard deviation over images divided by
        :math:`\sqrt n`. It contains the noise of the draws too.

    Raises:
        ValueError: If an argument does not fit.

    Source:
        Theis et al., "A note on the evaluation of generative models" (ICLR 2016), section 3.1; Burda et al.,
        "Importance weighted autoencoders" (ICLR 2016) for more than one draw.

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> model = gf.Dequantize(gf.coupling_flow(jr.key(0), 2, layers=1), levels=4)
        >>> print(f"{gf.bits_per_dim(model, jr.randint(jr.key(1), (9, 2), 0, 4), jr.key(2)).bits:.3f}")
        2.000
    """
    if not isinstance(model, ImageModel):
        raise ValueError(
            "`model` must be a model of images of whole numbers, gf.Dequantize or gf.DiscreteAutoregressive; "
            f"got {type(model).__name__}."
        )
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((model, condition, key))):
        instead = "log_prob" if model.exact else "log_prob_bound"
        raise ValueError(
            "`model`, `condition` and `key` must be concrete, since the result holds Python numbers; at "
            f"least one is traced. Inside jax.jit or jax.grad take the mean of `model.{instead}`."
        )
    if model.exact:
        key, draws = jr.key(0), 1
    elif key is None:
        raise ValueError("`key` must be a random key for the noise of a dequantized model; got None.")
    nats = np.asarray(log_prob(model, model.images(images, 2), condition, key, draws), float)
    bits = -nats / (math.log(2) * math.prod(model.shape))
    return BitsPerDim(float(bits.mean()), float(bits.std(ddof=1) / math.sqrt(len(bits))))
