"""The moving figure ``bijector_fits``.

cd book; python -m motion.bijector_fits
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.scipy.special import entr
from jax.scipy.stats import norm
from paramax import unwrap

import gauss_flows as gf
from _style import ACTIVE, GAUSS_KW, GOOD, OTHER, TRUTH, style_ax
from motion.drawing import standing_on
from motion.movie import Movie


def bijector_fits():
    """Three maps of the line, trained on two bumps, from the identity."""
    x = jnp.linspace(-9, 9, 1801)
    dx = float(x[1] - x[0])
    weights, means, scale = (
        jnp.array([0.35, 0.65]),
        jnp.array([-1.6, 2.2]),
        0.5,
    )
    bumps = norm.pdf(x[:, None], means[None, :], scale) @ weights
    mean, entropy = bumps @ x * dx, entr(bumps).sum() * dx
    variance = bumps @ (x - mean) ** 2 * dx
    floor = float(0.5 * jnp.log(2 * jnp.pi * jnp.e * variance) - entropy)
    menu = {
        "affine": (gf.Affine(), OTHER),
        "mixture CDF": (gf.MixtureGaussianCDF(8), ACTIVE),
        "spline": (gf.RQSpline(8, 5.0), GOOD),
    }
    kept = np.unique(np.round(np.geomspace(1, 800, 32))).astype(int)
    kept = np.concatenate([[0], kept])
    optimizer = optax.adam(0.03)

    def model(bijector):
        z, log_slope = jax.vmap(bijector.transform_and_log_det)(x)
        return z, norm.logpdf(z) + log_slope

    @eqx.filter_jit
    def train(bijector):
        params, static = eqx.partition(bijector, eqx.is_inexact_array)
        whole = lambda params: unwrap(eqx.combine(params, static))

        def loss(params):
            return -(bumps @ model(whole(params))[1]) * dx - entropy

        def step(state, _):
            params, opt_state = state
            value, grads = jax.value_and_grad(loss)(params)
            updates, opt_state = optimizer.update(grads, opt_state)
            new = optax.apply_updates(params, updates), opt_state
            return new, (value, *model(whole(params)))

        start = params, optimizer.init(params)
        return jax.lax.scan(step, start, length=int(kept[-1]) + 1)[1]

    nats, maps, densities = {}, {}, {}
    for name, (bijector, _) in menu.items():
        value, z, log_density = map(np.asarray, train(bijector))
        nats[name], maps[name] = value[kept], z[kept]
        densities[name] = np.exp(log_density[kept])
    gf.check("affine, end - its floor", nats["affine"][-1] - floor,
             at_least=-1e-4, at_most=5e-3)  # fmt: skip
    for name in ("mixture CDF", "spline"):
        gf.check(f"{name}, end", nats[name][-1], at_most=0.02, digits=".3f")

    fig, axes = plt.subplots(
        2,
        3,
        figsize=(7.2, 4.6),
        sharex=True,
        sharey="row",
        height_ratios=[1.3, 1],
    )
    fig.suptitle(
        "An affine map gives one peak, a nonlinear map can give two",
        weight="bold",
        fontsize=11,
    )
    titles = ("affine", "mixture CDF", "spline")
    for (top, below), title in zip(axes.T, titles, strict=True):
        top.plot([-6, 6], [-6, 6], **GAUSS_KW)
        below.plot(x, bumps, color=TRUTH, lw=1.4)
        style_ax(top, title=title)
        style_ax(below, xlabel="$x$")
        top.set(xlim=(-4.5, 4.5), ylim=(-3.6, 3.6))
        below.set(ylim=(0, 0.75))
    axes[0, 0].set_ylabel("$z = T(x)$")
    axes[1, 0].set_ylabel("density")

    stops = [*range(0, len(kept) - 1, 3), len(kept) - 1]
    show = lambda k: ", ".join(f"{name} {max(v[k], 0):.2f}" for name, v in nats.items())
    captions = [
        f"After {kept[k]} step{'s' if kept[k] > 1 else ''}, divergence from the data in nats: {show(k)}."
        for k in stops
    ]
    captions[0] = (
        "Before training all maps are close to the identity, and the density is one standard normal peak."
        f" Divergence from the data in nats: {show(0)}."
    )
    captions[-1] += f" No affine map gets below {floor:.2f} nats."
    movie = Movie(fig, captions, stops=stops, seconds=0.9)
    here = np.abs(np.asarray(x)) <= 4.6
    line = np.asarray(x)[here][::4]
    for (top, below), (name, (_, colour)) in zip(axes.T, menu.items(), strict=True):
        z, p = maps[name][:, here][:, ::4], densities[name][:, here][:, ::4]
        outline = np.stack([[standing_on(0, line, one)] for one in p])
        movie.areas(below, outline, [colour], alpha=0.55)
        curve = np.stack([np.broadcast_to(line, z.shape), z], axis=-1)
        movie.lines(top, curve[:, None], colour, width=2.6)
    return movie


if __name__ == "__main__":
    bijector_fits().write("bijector_fits")
