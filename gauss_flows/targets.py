"""Distributions with a *known* density and entropy, to compare flows against.

Each is a flowjax distribution without parameters to train. No flow's expected test log-likelihood can
exceed minus the target's entropy, and :func:`gauss_flows.kl_divergence` gives the difference.
"""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import scipy
from jax.scipy.special import i0e, logsumexp
from jaxtyping import ArrayLike

from gauss_flows.known_density import Target
from gauss_flows.normal import LOG_SQRT_2PI
from gauss_flows.validate import Given, expect_concrete, expect_whole


def _positive(name: str, value: Given) -> float:
    good = isinstance(value, int | float | np.floating) and 0 < value < np.inf
    if not bool(good):
        raise ValueError(f"`{name}` must be a finite positive number; got {value!r}.")
    return float(value)


def gaussian_mixture(
    means: ArrayLike | None = None, scales: ArrayLike = 0.25, weights: ArrayLike | None = None
) -> Target:
    r"""A mixture of Gaussians with diagonal covariances.

    .. math:: p(x) = \sum_{k=1}^K \pi_k \prod_{d=1}^D \frac{1}{\sigma_{kd}}
              \varphi\Big(\frac{x_d - \mu_{kd}}{\sigma_{kd}}\Big).

    Args:
        means: Shape (K, D). Default: eight on a circle of radius 2 in the plane.
        scales: One number, or shape (K,) or (K, D); positive.
        weights: Shape (K,), positive; scaled to sum to 1. Default: equal.

    Raises:
        ValueError: If an array has the wrong shape or a forbidden value; from ``entropy``, if there
            are more than two dimensions and components, or scales too small for a grid.

    Example:
        >>> import gauss_flows as gf
        >>> print(f"{gf.targets.gaussian_mixture().entropy:.4f}")
        2.1384
    """
    if means is None:
        angles = np.arange(8) * np.pi / 4
        means = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    number = lambda name, value: np.array(expect_concrete(name, value, float))
    means, scales = number("means", means), number("scales", scales)
    if not (means.ndim == 2 and means.size > 0):
        raise ValueError(f"`means` must have shape (K, D); got {means.shape}.")
    k, dim = means.shape
    weights = np.ones(k) if weights is None else number("weights", weights)
    fits = scales.shape in ((), (k,), (k, dim))
    if not fits:
        raise ValueError(
            f"`scales` must be one number or have shape ({k},) or ({k}, {dim}); got {scales.shape}."
        )
    if weights.shape != (k,):
        raise ValueError(f"`weights` must have shape ({k},), one per row of `means`; got {weights.shape}.")
    for name, value in (("means", means), ("scales", scales), ("weights", weights)):
        if not bool(np.isfinite(value).all()):
            raise ValueError(f"`{name}` must be finite; got {value}.")
        if name != "means" and not (value > 0).all():
            raise ValueError(f"`{name}` must be positive; got {value}.")
    return _mixture(means, scales[:, None] if scales.ndim == 1 else scales, weights / weights.sum())


def _mixture(means, scales, weights, sampler=None, recipe=None) -> Target:
    """A Gaussian mixture from checked arrays; a sampler, if it stands for more than its components."""
    k, dim = means.shape
    scales = np.broadcast_to(scales, means.shape)
    mean = weights @ means
    std = np.sqrt(weights @ ((means - mean) ** 2 + scales**2))
    log_heights = np.log(weights) - np.log(scales).sum(axis=1) - dim * LOG_SQRT_2PI

    def log_density(x):
        u = (x[None] - jnp.asarray(means, x.dtype)) / jnp.asarray(scales, x.dtype)
        return logsumexp(jnp.asarray(log_heights, x.dtype) - 0.5 * (u * u).sum(axis=1))

    def from_components(key):
        key_component, key_noise = jr.split(key)
        noise = jr.normal(key_noise, (dim,))
        index = jr.categorical(key_component, jnp.asarray(np.log(weights), noise.dtype))
        return jnp.asarray(means, noise.dtype)[index] + jnp.asarray(scales, noise.dtype)[index] * noise

    def entropy():
        # On a grid: for so smooth an integrand the error falls faster than any power of the step.
        if k == 1:
            return float(np.log(scales).sum() + dim * (LOG_SQRT_2PI + 0.5))
        if dim > 2:
            raise ValueError(
                f"`means` must have at most two columns, or one row, for the entropy; got {means.shape}."
            )
        low, high = (means - 9 * scales).min(axis=0), (means + 9 * scales).max(axis=0)
        sizes = np.ceil(4 * (high - low) / scales.min(axis=0)) + 1
        if sizes.prod() >= 2e7:
            raise ValueError(
                f"`scales` must be so wide that a grid of 2e7 points gives the entropy; these need "
                f"{sizes.prod():.0e}."
            )
        axes = [np.linspace(*ends) for ends in zip(low, high, sizes.astype(int), strict=True)]
        along = [  # the components' densities on each axis, (grid, K)
            np.exp(-0.5 * ((axis[:, None] - m) / s) ** 2 - LOG_SQRT_2PI) / s
            for axis, m, s in zip(axes, means.T, scales.T, strict=True)
        ]
        density = (along[0] * weights) @ (along[1].T if dim == 2 else np.ones((k, 1)))
        return float(scipy.special.entr(density).sum() * np.prod([axis[1] - axis[0] for axis in axes]))

    if recipe is None:
        recipe = ("mixture", *(tuple(np.ravel(array).tolist()) for array in (means, scales, weights)), dim)
    components = (means, scales, weights)
    return Target((dim,), log_density, sampler or from_components, (mean, std), entropy, recipe, components)


def _curves(points, start, stop, max_speed, noise, name) -> Target:
    """Two curves with Gaussian noise, t uniform: by Gauss-Legendre quadrature, a mixture of Gaussians."""
    noise = _positive("noise", noise)
    if not noise >= 0.02:
        raise ValueError(f"`noise` must be at least 0.02, or quadrature is slow; got {noise}.")
    n = int(np.ceil(1.4 * max_speed * (stop - start) / noise)) + 40  # closer than the noise is wide
    nodes, weights = scipy.special.roots_legendre(n)
    t = (start + stop) / 2 + (stop - start) / 2 * nodes
    means = np.concatenate([np.stack(points(t, side, np), axis=1) for side in (0, 1)])

    def sampler(key):
        key_side, key_t, key_noise = jr.split(key, 3)
        t = jr.uniform(key_t, minval=start, maxval=stop)
        x, y = points(t, jr.bernoulli(key_side).astype(t.dtype), jnp)
        return jnp.stack([x, y]) + noise * jr.normal(key_noise, (2,))

    weights = np.tile(weights / weights.sum() / 2, 2)
    return _mixture(means, noise, weights, sampler, (name, noise))


def spiral(noise: float = 0.08) -> Target:
    r"""Two spiral arms, opposite each other, with Gaussian noise.

    .. math:: x = s\,t\,(\cos 2.5 t, \sin 2.5 t) + \sigma\varepsilon, \qquad
              t \sim U[0.5, 3.5], \quad s = \pm 1, \quad \varepsilon \sim N(0, I).

    The density is Gauss-Legendre quadrature over t: within eight noise widths of an arm
    :math:`\log p` is right to :math:`10^{-6}`.

    Args:
        noise: :math:`\sigma`, at least 0.02.

    Raises:
        ValueError: If ``noise`` is smaller, or not finite.

    Example:
        >>> import gauss_flows as gf
        >>> print(f"{gf.targets.spiral().entropy:.4f}")
        2.2359
    """

    def points(t, side, xp):
        return (1 - 2 * side) * t * xp.cos(2.5 * t), (1 - 2 * side) * t * xp.sin(2.5 * t)

    return _curves(points, 0.5, 3.5, np.hypot(1, 2.5 * 3.5), noise, "spiral")


def two_moons(noise: float = 0.1) -> Target:
    r"""Two interleaved half circles of radius 1, with Gaussian noise.

    .. math:: x = \sigma\varepsilon + \begin{cases} (\cos a, \sin a) & \text{or, as likely,} \\
              (1 - \cos a, \tfrac12 - \sin a), \end{cases} \qquad
              a \sim U[0, \pi], \quad \varepsilon \sim N(0, I).

    The density is Gauss-Legendre quadrature over a, as right as that of :func:`spiral`.

    Args:
        noise: :math:`\sigma`, at least 0.02.

    Raises:
        ValueError: If ``noise`` is smaller, or not finite.

    Example:
        >>> import gauss_flows as gf
        >>> print(f"{gf.targets.two_moons().entropy:.4f}")
        1.0076
    """

    def points(a, side, xp):
        return side + (1 - 2 * side) * xp.cos(a), 0.5 * side + (1 - 2 * side) * xp.sin(a)

    return _curves(points, 0.0, np.pi, 1.0, noise, "two moons")


def rings(radii: tuple[float, ...] = (1.0, 2.0, 3.0), noise: float = 0.1) -> Target:
    r"""Concentric rings of equal mass, with Gaussian noise.

    .. math:: p(x) = \frac1K \sum_{k=1}^K \frac{1}{2\pi\sigma^2} I_0\Big(\frac{r\,r_k}{\sigma^2}\Big)
              \exp\Big({-\frac{r^2 + r_k^2}{2\sigma^2}}\Big), \qquad r = \|x\|,

    with :math:`I_0` the modified Bessel function, which is the integral over the angle.

    Args:
        radii: :math:`r_k`, one or more positive numbers.
        noise: :math:`\sigma`, positive.

    Raises:
        ValueError: If ``radii`` is empty or not positive, or ``noise`` is not positive.

    Example:
        >>> import gauss_flows as gf
        >>> print(f"{gf.targets.rings().entropy:.4f}")
        2.6489
    """
    rs = np.array(expect_concrete("radii", radii, float))
    good = rs.ndim == 1 and rs.size > 0 and bool((np.isfinite(rs) & (rs > 0)).all())
    if not good:
        raise ValueError(f"`radii` must be one or more positive numbers; got {radii}.")
    noise = _positive("noise", noise)
    log_height = -2 * LOG_SQRT_2PI - float(np.log(noise**2 * rs.size))

    def log_density(x):
        square = (x * x).sum()
        zero = square == 0  # asked so that NaN takes the other branch, and stays
        r = jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))[None]
        radii = jnp.asarray(rs, x.dtype)
        log_terms = jnp.log(i0e(r * (radii / noise**2))) - 0.5 * ((r - radii) / noise) ** 2
        return logsumexp(log_terms) + log_height

    def sampler(key):
        key_ring, key_angle, key_noise = jr.split(key, 3)
        angle = jr.uniform(key_angle, maxval=2 * np.pi)
        radius = jnp.asarray(rs, angle.dtype)[jr.randint(key_ring, (), 0, rs.size)]
        return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)]) + noise * jr.normal(key_noise, (2,))

    def entropy():
        r = np.linspace(0, rs.max() + 9 * noise, int((rs.max() / noise + 9) * 100) + 1)
        bells = [np.exp(-0.5 * ((r - rk) / noise) ** 2) * scipy.special.i0e(r * rk / noise**2) for rk in rs]
        density = sum(bells) * np.exp(log_height)
        return float(scipy.integrate.simpson(2 * np.pi * r * scipy.special.entr(density), r))

    std = np.sqrt(np.mean(rs**2) / 2 + noise**2)
    return Target((2,), log_density, sampler, (0.0, std), entropy, ("rings", *rs.tolist(), noise))


def checkerboard(squares: int = 4, half_width: float = 2.0) -> Target:
    r"""Uniform on every other square of a board, :math:`[-h, h]^2`; each coordinate alone is uniform.

    .. math:: p(x) &= \frac{1}{2 h^2} \text{ where }
              \lfloor n (x_1 + h) / 2h \rfloor + \lfloor n (x_2 + h) / 2h \rfloor \text{ is even, else } 0, \\
              H &= \log 2 h^2.

    Args:
        squares: n, along a side; an even number.
        half_width: h, positive.

    Raises:
        ValueError: If ``squares`` is not even and at least 2, or ``half_width`` is not positive.

    Example:
        >>> import gauss_flows as gf
        >>> print(f"{gf.targets.checkerboard().entropy:.4f}")
        2.0794
    """
    if expect_whole("squares", squares, 2) % 2 != 0:
        raise ValueError(f"`squares` must be even; got {squares}.")
    half_width = _positive("half_width", half_width)
    entropy = float(np.log(2 * half_width**2))

    def log_density(x):
        square = jnp.floor((x / half_width + 1) * (squares / 2))
        inside = jnp.all((square >= 0) & (square < squares)) & (square.sum() % 2 == 0)
        log_p = jnp.where(inside, jnp.asarray(-entropy, x.dtype), -jnp.inf)
        return jnp.where(jnp.isnan(x).any(), jnp.nan, log_p)

    def sampler(key):
        key_column, key_row, key_place = jr.split(key, 3)
        column = jr.randint(key_column, (), 0, squares)
        row = 2 * jr.randint(key_row, (), 0, squares // 2) + column % 2
        place = jr.uniform(key_place, (2,))
        edge = 8 * squares * float(jnp.finfo(place.dtype).eps)  # rounding must not leave the square
        place = jnp.stack([column, row]) + jnp.clip(place, edge, 1 - edge)
        return half_width * (place * (2 / squares) - 1)

    moments, recipe = (0.0, half_width / np.sqrt(3)), ("checkerboard", squares, half_width)
    return Target((2,), log_density, sampler, moments, lambda: entropy, recipe)


def funnel(dim: int = 2) -> Target:
    r"""Neal's funnel: the first coordinate sets the scale of all others.

    .. math:: v \sim N(0, 3^2), \quad x_i \mid v \sim N(0, e^v), \; i = 1, \dots, D - 1, \qquad
              H = \tfrac{D}{2} \log 2\pi e + \log 3.

    The event is :math:`(v, x_1, \dots)`. The :math:`x_i` have standard deviation :math:`e^{9/4}`,
    about 9.5, but tails so heavy that the standard deviation of a sample is a poor estimate of it.

    Args:
        dim: D, at least 2.

    Raises:
        ValueError: If ``dim`` is not a whole number of at least 2.

    Source:
        Neal, "Slice sampling" (Annals of Statistics 2003), section 8.

    Example:
        >>> import gauss_flows as gf
        >>> print(f"{gf.targets.funnel(2).entropy:.4f}")
        3.9365
    """
    expect_whole("dim", dim, 2)
    log_3 = float(np.log(3))

    def log_density(x):
        v, half = x[0], -0.5 * x[0]
        large = half > float(np.log(jnp.finfo(x.dtype).max))  # 0 times an infinite scale must be 0
        u = x[1:] * jnp.exp(jnp.where(large & (x[1:] == 0), 0, half))
        return -0.5 * ((v / 3) ** 2 + (u * u).sum() + (dim - 1) * v) - log_3 - dim * LOG_SQRT_2PI

    def sampler(key):
        u = jr.normal(key, (dim,))
        return jnp.concatenate([3 * u[:1], jnp.exp(1.5 * u[:1]) * u[1:]])

    std = [3.0] + [float(np.exp(9 / 4))] * (dim - 1)
    entropy = lambda: dim * (LOG_SQRT_2PI + 0.5) + log_3
    return Target((dim,), log_density, sampler, (0.0, std), entropy, ("funnel", dim))
