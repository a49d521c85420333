"""Dequantization: a model of images of whole numbers, made from a flow for real numbers."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flowjax.bijections import AbstractBijection, Chain
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from gauss_flows.bijection import Scan, stack, standard_normal
from gauss_flows.bijectors import exp_affine
from gauss_flows.compiling import compiled
from gauss_flows.conditioners import ConditionerFactory, mlp
from gauss_flows.coupling import Coupling
from gauss_flows.levels import ImageModel, PixelTable, expect_levels_of_numbers, log_prob
from gauss_flows.log_det import log_prob as flow_log_prob
from gauss_flows.masks import Mask, as_mask, flip
from gauss_flows.normal import normal_tails
from gauss_flows.parametrize import Parametrized
from gauss_flows.transformed import Transformed
from gauss_flows.validate import Given, Shape, as_floats, expect_key, expect_shape, expect_whole


class Dequantize(ImageModel):
    r"""A model of images of whole numbers, made from a flow for real numbers.

    .. math:: P(k) = \int_{[0, 1)^D} p(k + u)\, du
              = E_{u \sim q(\cdot | k)} \frac{p(k + u)}{q(u | k)}.

    Noise u in each pixel turns the levels k = 0, …, L - 1 into real numbers y = k + u, whose density p is
    that of a flow. One draw of u gives an unbiased estimate of P, whose logarithm is in expectation a lower
    bound of log P. The first map is fixed: each pixel's CDF and then the normal quantile function, which
    gives *normal scores* v (:class:`~gauss_flows.levels.PixelTable`). So

    .. math:: \log p(y) = \log p_\mathrm{flow}(v)
              + \sum_i \big( \log t_i(k_i) - \log\varphi(v_i) \big),

    where :math:`t_i(k)` is the share of level k in pixel i. The numbers y fill the interval [0, L] and no
    more, so the probabilities of all images sum to 1.

    ``gf.fit(key, model, images)`` trains the flow and the noise together. To set layers of the flow from data
    before, use ``gf.data_init(model.flow, model.dequantize(images, key))`` and make the model anew.

    Args:
        flow: A distribution of the image's shape, such as :func:`~gauss_flows.coupling_flow` makes, with or
            without a condition.
        levels: L, at least 2; 256 for images of 8 bits.
        images: Training images, of which the shares of the levels are counted (plus one each), shape
            (n, \*shape). Default: none, and every level has the share 1/L.
        noise: The density of :math:`w = \Phi^{-1}(u)` given the image, as :func:`variational_noise` makes
            it: its condition is the flat image, as normal scores. Default: u is uniform.

    Raises:
        ValueError: If an argument does not fit.

    Source:
        Theis et al., "A note on the evaluation of generative models" (ICLR 2016), section 3.1; Ho et al.,
        "Flow++" (ICML 2019), section 3.1 for noise that depends on the image.

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> images = jr.randint(jr.key(0), (100, 2), 0, 4)
        >>> model = gf.Dequantize(gf.coupling_flow(jr.key(1), 2, layers=1), levels=4, images=images)
        >>> model.sample(jr.key(2), 5).shape
        (5, 2)
    """

    flow: PyTree
    table: PixelTable
    noise: PyTree
    levels: int = eqx.field(static=True)
    exact: ClassVar[bool] = False

    def __init__(self, flow: PyTree, levels: int, *, images: Given = None, noise: PyTree = None):
        for name, density in {"flow": flow, "noise": noise}.items():
            whole = all(hasattr(density, part) for part in ("shape", "cond_shape", "log_prob", "sample"))
            if not whole and not (name == "noise" and density is None):
                raise ValueError(f"`{name}` must be a flowjax distribution; got {type(density).__name__}.")
        wanted = (flow.shape, (math.prod(flow.shape),))
        if noise is not None and (noise.shape, noise.cond_shape) != wanted:
            raise ValueError(
                f"`noise` must have the shape and the condition's shape {wanted}, since it depends on the "
                f"flat image; got {(noise.shape, noise.cond_shape)}."
            )
        self.table = PixelTable(flow.shape, levels, images)
        self.flow, self.noise, self.levels = flow, noise, int(levels)

    @property
    def shape(self) -> Shape:
        """The shape of one image."""
        return self.flow.shape

    @property
    def cond_shape(self) -> Shape | None:
        """The shape of the flow's condition, None if it has none."""
        return self.flow.cond_shape

    def _noise(self, k, key):
        """The logarithms of u and of 1 - u, and log q(u | k)."""
        if self.noise is None:
            # In the middle of each step of the generator, so that neither u nor 1 - u is 0.
            u = jr.uniform(key, k.shape, float) + jnp.finfo(float).eps / 2
            return jnp.log(u), jnp.log1p(-u), 0.0
        w, log_q = self.noise.sample_and_log_prob(key, (), self.table.midpoints(k).ravel())
        tails = normal_tails(w)
        return tails.lower, tails.upper, log_q - norm.logpdf(w).sum()

    def _log_prob(self, k, condition, key):
        noise_key, key = jr.split(key)
        log_u, log_rest, log_q = self._noise(k, noise_key)
        v, log_share = self.table.scores(k, log_u, log_rest)
        log_p = flow_log_prob(self.flow, v[None], None if condition is None else condition[None], key)[0]
        return log_p + (log_share - norm.logpdf(v)).sum() - log_q

    def _draw(self, key, condition):
        return self.table.quantize(self.flow.sample(key, (), condition))

    def log_prob_bound(
        self, images: Given, key: PRNGKeyArray, condition: Given = None, *, draws: int = 1
    ) -> Float[Array, " n"]:
        """Return the log of a mean of ``draws`` estimates of P(k), in nats, for each image.

        Its expectation is a lower bound of log P(k), which rises with the number of draws.

        Args:
            images: Whole numbers from 0 to levels - 1, shape (n, \\*shape).
            key: Random key of the noise.
            condition: One row per image, where the flow has conditions.
            draws: Number of draws for each image, at least 1.

        Raises:
            ValueError: If an argument does not fit.
        """
        return log_prob(self, images, condition, key, draws)

    def dequantize(self, images: Given, key: PRNGKeyArray) -> Float[Array, "n *shape"]:
        """Return the normal scores of images with noise, which the flow takes as its data.

        Args:
            images: Whole numbers from 0 to levels - 1, shape (n, \\*shape).
            key: Random key of the noise.

        Raises:
            ValueError: If the images do not fit.
        """
        self.expect_single()
        k = jnp.asarray(self.images(images))
        return compiled(_scores, self, k, jr.split(expect_key(key), len(k)))

    def quantize(self, v: Float[Array, "n *shape"]) -> Int[Array, "n *shape"]:
        """Return the images in whose cells normal scores lie: up to rounding the inverse of ``dequantize``.

        Args:
            v: Normal scores, such as samples of the flow, shape (n, \\*shape).

        Raises:
            ValueError: If the scores do not fit.
        """
        self.expect_single()
        array = as_floats("v", v)
        if array.ndim < 1 or array.shape[1:] != self.shape:
            raise ValueError(f"`v` must have shape {('n', *self.shape)}; got {array.shape}.".replace("'", ""))
        return expect_levels_of_numbers(compiled(_levels, self.table, array), "`v` must not hold NaN.")


def _scores(model, k, keys):
    return jax.vmap(lambda k, key: model.table.scores(k, *model._noise(k, key)[:2])[0])(k, keys)


def _levels(table, v):
    return jax.vmap(table.quantize)(v)


def variational_noise(
    key: PRNGKeyArray,
    shape: Shape,
    *,
    layers: int = 2,
    mask: Mask | None = None,
    bijector: AbstractBijection | Parametrized | None = None,
    conditioner: ConditionerFactory | None = None,
    nn_width: int = 64,
) -> Transformed:
    r"""A trainable density of dequantization noise that depends on the image; it starts uniform.

    .. math:: u = \Phi(w), \qquad w = T_\phi(\epsilon;\, k), \qquad \epsilon \sim N(0, I),

    where T is a stack of coupling layers whose networks take the image as an additional input. Drawing w
    takes one pass, as does its density.

    Args:
        key: Random key.
        shape: The shape of one image, at least two pixels.
        layers: Pairs of couplings; in a pair the second has the first one's mask flipped.
        mask: The first mask. Default: a checkerboard.
        bijector: Any unconditional scalar bijection. Default: an affine one, with log-scales within ±2.
        conditioner: As for :class:`~gauss_flows.Coupling`. Default: an MLP with one hidden layer and silu
            whose last layer starts at zero.
        nn_width: Hidden units of the default conditioner.

    Returns:
        A distribution of w with a condition of size D, the number of pixels.

    Raises:
        ValueError: If an argument does not fit.

    Source:
        Ho et al., "Flow++" (ICML 2019), section 3.1.

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> flow, noise = gf.coupling_flow(jr.key(0), 2, layers=1), gf.variational_noise(jr.key(1), (2,))
        >>> gf.Dequantize(flow, levels=4, noise=noise).sample(jr.key(2)).shape
        (1, 2)
    """
    shape = expect_shape(shape)
    first = as_mask(np.indices(shape).sum(axis=0) % 2 == 0 if mask is None else mask, shape)
    layer = eqx.Partial(
        _pair, shape=shape, mask=first.ravel().tolist(), conditioner=conditioner, nn_width=nn_width,
        bijector=exp_affine(2.0) if bijector is None else bijector,
    )  # fmt: skip
    couplings = stack(key, expect_whole("layers", layers, 1), layer)
    return Transformed(standard_normal(shape), Scan(couplings))


def _pair(key, *, shape, mask, conditioner, nn_width, bijector):
    """Two couplings whose masks complement each other."""
    if conditioner is None:
        conditioner = mlp(nn_width, 1, activation=jax.nn.silu, zero_last=True)
    options = {"bijector": bijector, "conditioner": conditioner, "cond_dim": math.prod(shape)}
    first = np.array(mask).reshape(shape)
    keys = zip(jr.split(key), (first, flip(first)), strict=True)
    return Chain([Coupling(key, shape, mask=mask, **options) for key, mask in keys])
