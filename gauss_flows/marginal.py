"""Maps of single coordinates, whose parameters depend on nothing, and the flow of them and rotations."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from flowjax.bijections import AbstractBijection, Chain, Invert
from flowjax.distributions import AbstractDistribution
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from gauss_flows.actnorm import ActNorm
from gauss_flows.bijection import Bijection, Scan, base_density, stack
from gauss_flows.linear import HouseholderRotation
from gauss_flows.mixtures import MixtureGaussianCDF
from gauss_flows.parametrize import Parametrized, parametrize
from gauss_flows.supports import Supports, over
from gauss_flows.transformed import Transformed
from gauss_flows.validate import Shape, expect_shape, expect_whole


class MarginalGaussianization(Bijection):
    r"""Transform each coordinate by a scalar map: a coupling whose conditioner outputs a constant.

    .. math:: z_i = T_{\theta_i}(x_i), \qquad \log|\det J| = \sum_i \log |T'_{\theta_i}(x_i)|.

    J is diagonal: such layers alone reach product densities only, however many. With the default bijector
    and parameters from :func:`~gauss_flows.warm_start` each coordinate becomes standard normal.

    Args:
        shape: The event's shape.
        bijector: Any unconditional scalar bijection. Default: ``MixtureGaussianCDF(n_components=8)``.

    Raises:
        ValueError: If an argument does not fit.

    Source:
        Chen and Gopinath, "Gaussianization" (NIPS 2000); Meng et al., "Gaussianization flows" (AISTATS 2020).

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp
        >>> layer = gf.MarginalGaussianization((3,), bijector=gf.Affine(0.0, 2.0))
        >>> layer.transform(jnp.ones(3))
        Array([2., 2., 2.], dtype=float32)
    """

    shape: Shape = eqx.field(static=True)
    cond_shape: None = eqx.field(static=True)
    raw: Float[Array, "D P"]
    _bijector: Parametrized

    def __init__(self, shape: Shape, *, bijector: AbstractBijection | Parametrized | None = None):
        self.shape, self.cond_shape = expect_shape(shape), None
        self._bijector = parametrize(MixtureGaussianCDF() if bijector is None else bijector)
        self.raw = jnp.zeros((int(np.prod(self.shape)), self._bijector.size))

    @property
    def theta(self) -> Float[Array, "D P"]:
        """The parameters of the coordinates' bijectors, one row each."""
        return self._bijector.theta(self.raw)

    def transform_and_log_det(self, x, condition=None):
        z, log_det = self._bijector.transform(self.theta, x.ravel())
        return z.reshape(self.shape), log_det.sum()

    def inverse_and_log_det(self, y, condition=None):
        x, log_det = self._bijector.inverse(self.theta, y.ravel())
        return x.reshape(self.shape), log_det.sum()


def gaussianization_flow(
    key: PRNGKeyArray,
    dim: int,
    *,
    layers: int = 8,
    bijector: AbstractBijection | None = None,
    supports: Sequence | None = None,
    base: AbstractDistribution | None = None,
) -> Transformed:
    r"""A trainable flow without networks, in which maps of single coordinates alternate with rotations.

    An :class:`~gauss_flows.ActNorm`, then layers of :class:`~gauss_flows.MarginalGaussianization` and
    :class:`~gauss_flows.HouseholderRotation` (D reflections, random at first), over a standard normal
    base. The layers are stacked in a :class:`~gauss_flows.Scan`.

    Args:
        key: Random key for the rotations.
        dim: D, at least 1.
        layers: Number of layers.
        bijector: As for :class:`~gauss_flows.MarginalGaussianization`.
        supports: What each coordinate can take, as for :class:`~gauss_flows.Supports`, without angles.
        base: As for :func:`~gauss_flows.coupling_flow`.

    Returns:
        A flowjax ``Transformed``.

    Raises:
        ValueError: If an argument does not fit.

    Source:
        Meng et al., "Gaussianization flows" (AISTATS 2020).

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> gf.gaussianization_flow(jr.key(0), 3, layers=2).log_prob(jnp.zeros((4, 3))).shape
        (4,)
    """
    dim, layers = expect_whole("dim", dim, 1), expect_whole("layers", layers, 1)
    bijector = MixtureGaussianCDF() if bijector is None else bijector
    made = stack(key, layers, eqx.Partial(gaussianization_layer, dim=dim, bijector=bijector))
    flow = gaussianization_of(dim, made, ActNorm((dim,)), base_density(base, dim))
    return over(Supports.of(supports, dim), flow)


def gaussianization_layer(key: PRNGKeyArray, dim: int, bijector: AbstractBijection | None) -> Chain:
    """Return one layer of a Gaussianization flow: a map of each coordinate, then a rotation."""
    marginal = MarginalGaussianization((dim,), bijector=bijector)
    return Chain([marginal, HouseholderRotation(dim, (dim,), key=key)])


def gaussianization_of(
    dim: int, layers: PyTree, first: ActNorm, base: AbstractDistribution | None = None
) -> Transformed:
    """Return the flow of a first standardization and stacked layers, which may be None."""
    parts = [first] if layers is None else [first, Scan(layers)]
    return Transformed(base_density(base, dim), Invert(Chain(parts)))
