"""Maps of single coordinates: parameters that depend on nothing."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from flowjax.bijections import AbstractBijection
from jaxtyping import Array, Float

from gauss_flows.bijection import Bijection
from gauss_flows.mixtures import MixtureGaussianCDF
from gauss_flows.parametrize import Parametrized, parametrize
from gauss_flows.validate import Shape, expect_shape


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
