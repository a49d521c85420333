"""Coupling layers: one bijector, one conditioner and one mask, put together."""

import math
from collections.abc import Callable, Sequence
from typing import TypedDict, Unpack

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from flowjax.bijections import AbstractBijection, Loc
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from gauss_flows import conditioners, masks
from gauss_flows.bijection import Bijection
from gauss_flows.bijectors import Affine, exp_affine
from gauss_flows.mixtures import DeepSigmoid, MixtureGaussianCDF
from gauss_flows.parametrize import Parametrized, parametrize
from gauss_flows.spline import RQSpline
from gauss_flows.validate import Shape, expect_shape, expect_whole


class CouplingOptions(TypedDict, total=False):
    """The options that every form of a coupling layer passes on to :class:`Coupling`."""

    mask: Bool[np.ndarray, "*shape"] | Sequence[object] | None
    conditioner: conditioners.ConditionerFactory | None
    cond_dim: int | None
    nn_width: int
    nn_depth: int


class Coupling(Bijection):
    r"""Copy the passive coordinates, transform the active ones with parameters that depend on them.

    .. math:: z_A &= x_A, \qquad z_B = T_{\theta}(x_B), \qquad \theta = \theta_0 + c_\phi(x_A, c), \\
              \log|\det J| &= \sum_{i \in B} \log |T'_{\theta_i}(x_i)|.

    The Jacobian is triangular once the passive coordinates are put first, so its determinant is the
    product of the active slopes; the inverse computes the same :math:`\theta` from :math:`z_A = x_A`
    and inverts only the scalar bijector, never the network. :math:`\theta_0` holds the parameters
    of ``bijector`` as given, so a conditioner that returns zeros leaves that bijector in place.

    Args:
        key: Random key for the conditioner.
        shape: The event's shape, of any rank, at least two elements.
        bijector: Any unconditional scalar bijection, shape (), or a
            :class:`~gauss_flows.Parametrized`; each active coordinate gets a copy with parameters of its own.
            Parameters in ``paramax.NonTrainable`` stay as they are.
        mask: Boolean array of the event's shape, True = passive, False = active. Default: the
            first half, in C order, is passive.
        conditioner: Factory ``(in_size, out_size, *, key) -> callable``; the callable maps the
            passive coordinates (then the condition), flat, to ``out_size`` numbers. Default: an
            ``eqx.nn.MLP`` with relu.
        cond_dim: Size of an external condition, shape (cond_dim,). Default: none.
        nn_width: Hidden units of the default conditioner.
        nn_depth: Hidden layers of the default conditioner.

    Raises:
        ValueError: If an argument does not fit; the message says which and how.

    Source:
        Dinh et al., "Density estimation using Real NVP" (ICLR 2017), section 3.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> layer = gf.Coupling(jr.key(0), shape=(3,), bijector=gf.Affine())
        >>> z, log_det = layer.transform_and_log_det(jnp.ones(3))
    """

    shape: Shape = eqx.field(static=True)
    cond_shape: Shape | None = eqx.field(static=True)
    conditioner: Callable[[Array], Array]
    _passive: tuple[int, ...] = eqx.field(static=True)
    _active: tuple[int, ...] = eqx.field(static=True)
    _bijector: Parametrized

    def __init__(
        self,
        key: PRNGKeyArray,
        shape: Shape,
        *,
        bijector: AbstractBijection | Parametrized,
        mask: Bool[np.ndarray, "*shape"] | Sequence[object] | None = None,
        conditioner: conditioners.ConditionerFactory | None = None,
        cond_dim: int | None = None,
        nn_width: int = 64,
        nn_depth: int = 2,
    ):
        self.shape = expect_shape(shape)
        self._bijector = parametrize(bijector, at_least=1)
        self.cond_shape = None if cond_dim is None else (expect_whole("cond_dim", cond_dim, 1),)

        flat_mask = masks.as_mask(mask, self.shape).ravel()
        self._passive = tuple(np.flatnonzero(flat_mask).tolist())
        self._active = tuple(np.flatnonzero(~flat_mask).tolist())

        self.conditioner = conditioners.make(
            conditioner if conditioner is not None else conditioners.mlp(nn_width, nn_depth),
            len(self._passive) + (cond_dim or 0),
            len(self._active) * self._bijector.size,
            key=key,
        )

    @property
    def mask(self) -> Bool[np.ndarray, "*shape"]:
        """The mask, a boolean array of the event's shape; True = passive."""
        flat = np.zeros(math.prod(self.shape), dtype=bool)
        flat[list(self._passive)] = True
        return flat.reshape(self.shape)

    def bijector(self, theta: Float[Array, " P"]) -> AbstractBijection:
        """The scalar bijector with parameters ``theta``, as the layer would use it."""
        return self._bijector(theta)

    def theta(
        self, passive: Float[Array, " A"], condition: Float[Array, " C"] | None = None
    ) -> Float[Array, "B P"]:
        """The parameters of the active coordinates' bijectors, one row each.

        Args:
            passive: The passive coordinates, flat, in C order.
            condition: The external condition, where the layer has one.
        """
        inputs = passive if condition is None else jnp.concatenate([passive, condition])
        return self._bijector.theta(self.conditioner(inputs).reshape(len(self._active), -1))

    def transform_and_log_det(self, x, condition=None):
        passive, active = self._split(x)
        theta = self.theta(passive, condition)
        active, log_slopes = self._bijector.transform(theta, active)
        return self._merge(passive, active), log_slopes.sum()

    def inverse_and_log_det(self, y, condition=None):
        passive, active = self._split(y)
        theta = self.theta(passive, condition)
        active, log_slopes = self._bijector.inverse(theta, active)
        return self._merge(passive, active), log_slopes.sum()

    def _split(self, event):
        """The passive and the active coordinates, each flat, in C order."""
        flat = event.ravel()
        return _take(flat, self._passive), _take(flat, self._active)

    def _merge(self, passive, active):
        """The event with these coordinates."""
        place = np.argsort(np.array(self._passive + self._active))
        return _take(jnp.concatenate([passive, active]), tuple(place.tolist())).reshape(self.shape)


def _take(flat: Array, indices: tuple[int, ...]) -> Array:
    """flat[indices], by a slice where the indices are contiguous (the common, faster case)."""
    start, size = indices[0], len(indices)
    if indices == tuple(range(start, start + size)):
        return flat[start : start + size]
    return flat[np.array(indices)]


class AdditiveCoupling(Coupling):
    r"""A coupling that only shifts, :math:`z_B = x_B + b(x_A)` (NICE): it preserves volume.

    Args:
        key: Random key for the conditioner.
        shape: The event's shape.
        **options: mask, conditioner, cond_dim, nn_width and nn_depth of :class:`Coupling`.

    Raises:
        ValueError: As :class:`Coupling`.

    Source:
        Dinh et al., "NICE: non-linear independent components estimation" (2015), section 3.2.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> layer = gf.AdditiveCoupling(jr.key(0), shape=(4,))
        >>> float(layer.transform_and_log_det(jnp.ones(4))[1])
        0.0
    """

    def __init__(self, key: PRNGKeyArray, shape: Shape, **options: Unpack[CouplingOptions]):
        super().__init__(key, shape=shape, bijector=Loc(jnp.zeros(())), **options)


class AffineCoupling(Coupling):
    r"""A coupling with an affine bijector, :math:`z_B = s(x_A) \odot x_B + b(x_A)` (Real NVP).

    The scale is :math:`s = \mathrm{softplus}(r_0 + r)`, where :math:`(t, r)` is the conditioner's
    output and softplus(:math:`r_0`) = 1: positive always, 1 for zero output. With a bound b it is
    :math:`s = \exp(b \tanh(r / b))`.

    Args:
        key: Random key for the conditioner.
        shape: The event's shape.
        log_scale_bound: Keeps :math:`|\log s|` below it. Default: a softplus instead.
        **options: mask, conditioner, cond_dim, nn_width and nn_depth of :class:`Coupling`.

    Raises:
        ValueError: As :class:`Coupling`, or if ``log_scale_bound`` is not positive.

    Source:
        Dinh et al., "Density estimation using Real NVP" (ICLR 2017), equations 4–8.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> layer = gf.AffineCoupling(jr.key(0), shape=(4,))
        >>> z = layer.transform(jnp.arange(4.0))
        >>> bool((z[:2] == jnp.arange(2.0)).all())
        True
    """

    def __init__(
        self,
        key: PRNGKeyArray,
        shape: Shape,
        *,
        log_scale_bound: float | None = None,
        **options: Unpack[CouplingOptions],
    ):
        bijector = Affine() if log_scale_bound is None else exp_affine(log_scale_bound)
        super().__init__(key, shape=shape, bijector=bijector, **options)


class MixtureGaussianCDFCoupling(Coupling):
    r"""A coupling whose bijector is :class:`MixtureGaussianCDF`: each map has up to K smooth steps.

    Args:
        key: Random key for the conditioner.
        shape: The event's shape.
        n_components: K, the components of each active coordinate's mixture.
        log_scale_bound: Keeps each :math:`|\log\sigma_k|` below it.
        **options: mask, conditioner, cond_dim, nn_width and nn_depth of :class:`Coupling`.

    Raises:
        ValueError: As :class:`Coupling` and :class:`MixtureGaussianCDF`.

    Source:
        Ho et al., "Flow++" (ICML 2019), section 3.2, with Gaussian in place of logistic components.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> layer = gf.MixtureGaussianCDFCoupling(jr.key(0), shape=(4,), n_components=3)
        >>> x = layer.inverse(layer.transform(jnp.ones(4)))
    """

    def __init__(
        self,
        key: PRNGKeyArray,
        shape: Shape,
        *,
        n_components: int = 8,
        log_scale_bound: float = 5.0,
        **options: Unpack[CouplingOptions],
    ):
        bijector = MixtureGaussianCDF(n_components, log_scale_bound=log_scale_bound)
        super().__init__(key, shape=shape, bijector=bijector, **options)


class DeepSigmoidCoupling(Coupling):
    r"""A coupling whose bijector is :class:`DeepSigmoid`: flexible in the center, linear in the tails.

    Args:
        key: Random key for the conditioner.
        shape: The event's shape.
        n_components: K, the sigmoids of each active coordinate.
        log_scale_bound: Keeps each :math:`|\log s_k|` below it.
        **options: mask, conditioner, cond_dim, nn_width and nn_depth of :class:`Coupling`.

    Raises:
        ValueError: As :class:`Coupling` and :class:`DeepSigmoid`.

    Source:
        Huang et al., "Neural autoregressive flows" (ICML 2018), with a coupling's mask.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> layer = gf.DeepSigmoidCoupling(jr.key(0), shape=(4,), n_components=3)
        >>> x = layer.inverse(layer.transform(jnp.ones(4)))
    """

    def __init__(
        self,
        key: PRNGKeyArray,
        shape: Shape,
        *,
        n_components: int = 8,
        log_scale_bound: float = 5.0,
        **options: Unpack[CouplingOptions],
    ):
        bijector = DeepSigmoid(n_components, log_scale_bound=log_scale_bound)
        super().__init__(key, shape=shape, bijector=bijector, **options)


class RQSplineCoupling(Coupling):
    r"""A coupling whose bijector is :class:`RQSpline`: a flexible map with a closed-form inverse.

    Args:
        key: Random key for the conditioner.
        shape: The event's shape.
        n_bins: Bins of each active coordinate's spline.
        interval: The spline acts on [-interval, interval]; outside it is the identity.
        **options: mask, conditioner, cond_dim, nn_width and nn_depth of :class:`Coupling`.

    Raises:
        ValueError: As :class:`Coupling` and :class:`RQSpline`.

    Source:
        Durkan et al., "Neural spline flows" (NeurIPS 2019).

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> layer = gf.RQSplineCoupling(jr.key(0), shape=(4,), n_bins=8, interval=4.0)
        >>> x = layer.inverse(layer.transform(jnp.ones(4)))
    """

    def __init__(
        self,
        key: PRNGKeyArray,
        shape: Shape,
        *,
        n_bins: int = 8,
        interval: float = 4.0,
        **options: Unpack[CouplingOptions],
    ):
        super().__init__(key, shape=shape, bijector=RQSpline(n_bins, interval), **options)
