"""The moving figure ``conditioner``.

cd book; python -m motion.conditioner
"""

import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from flowjax.distributions import Normal, Transformed
from jax.scipy.stats import norm
from paramax import non_trainable, unwrap

import gauss_flows as gf
from _style import ACTIVE, GOOD, MUTED, OTHER, PASSIVE, TRUTH, style_ax
from motion.drawing import standing_on
from motion.movie import Movie


def conditioner():
    """One trained coupling: the passive coordinate moves, and the network dials the other's density."""
    frames, K = 61, 4
    target = gf.targets.two_moons().standardized()
    draw = jax.jit(lambda key: target.sample(key, (10_000,)))
    x, fresh = draw(jr.key(0)), draw(jr.key(1))
    layer = gf.Coupling(
        jr.key(2), shape=(2,), bijector=gf.MixtureGaussianCDF(K),
        conditioner=gf.conditioners.mlp(64, 2, activation=jax.nn.silu),
    )  # fmt: skip
    base = non_trainable(Normal(jnp.zeros(2)))
    fit = gf.fit(
        jr.key(3),
        Transformed(base, fb.Invert(layer)),
        x,
        steps=2000,
        progress=False,
    )
    layer = unwrap(fit.flow.bijection.bijection)

    grid = jnp.linspace(-3, 3, 601)
    step = float(grid[1] - grid[0])

    @jax.jit
    def truth(x1):
        """Of x2 given x1, on the grid; and the logarithm of x1's own density."""
        both = jnp.stack([jnp.full_like(grid, x1), grid], axis=1)
        joint = jnp.exp(target.log_prob(both))
        return joint / (joint.sum() * step), jnp.log(joint.sum() * step)

    @jax.jit
    def model(x1, x2):
        """The network's output, and the log-density of x2 given x1."""
        theta = layer.theta(x1[None])[0]
        z, log_slope = jax.vmap(layer.bijector(theta).transform_and_log_det)(x2)
        return theta, norm.logpdf(z) + log_slope

    log_q = jax.vmap(lambda v: model(v[0], v[1:])[1][0])(fresh)
    log_p = target.log_prob(fresh) - jax.vmap(lambda v: truth(v)[1])(fresh[:, 0])
    short = float((log_p - log_q).mean())
    gf.check("nats short, x2 given x1", short, at_most=0.05, digits=".3f")

    at = jnp.linspace(-1.75, 1.75, frames)
    true = np.asarray(jax.vmap(lambda x1: truth(x1)[0])(at))
    theta, log_q = jax.vmap(model, (0, None))(at, grid)
    theta, density, at = np.asarray(theta), np.exp(log_q), np.asarray(at)

    fig = plt.figure(figsize=(7.2, 4.3))
    axes = fig.subplot_mosaic([["data", "theta"], ["data", "density"]], width_ratios=[1.25, 1])
    style_ax(
        axes["data"], title="Input of the network: $x_1$",
        xlabel="$x_1$, passive", ylabel="$x_2$, active",
    )  # fmt: skip
    axes["data"].set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), aspect="equal")
    axes["data"].scatter(*np.asarray(fresh[:1500]).T, s=3, color=MUTED, lw=0, alpha=0.6)
    style_ax(axes["theta"], title=f"Output: {3 * K} parameters")
    axes["theta"].set(xlim=(-0.7, 3 * K - 0.3), ylim=(-5, 5))  # a few logits go lower
    axes["theta"].axhline(0, color=TRUTH, lw=0.8)
    places = np.arange(3) * K + (K - 1) / 2
    axes["theta"].set_xticks(places, ["weights", "means", "scales"])
    axes["theta"].tick_params(axis="x", length=0)
    style_ax(
        axes["density"],
        title="Density of $x_2$ for this $x_1$",
        xlabel="$x_2$",
        ylabel="density, given $x_1$",
    )
    axes["density"].set(xlim=(-2.4, 2.4), ylim=(0, 1.12 * max(true.max(), density.max())))

    stops = list(range(0, frames, 5))
    peaks = lambda d: (d[1:-1] > d[:-2]) & (d[1:-1] > d[2:]) & (d[1:-1] > 0.1)
    bumps, others = ([int(peaks(d).sum()) for d in all_[stops]] for all_ in (true, density))
    gf.check("stops where data and model differ in bumps",
             sum(a != b for a, b in zip(bumps, others, strict=True)), at_most=0, digits=".0f")  # fmt: skip
    words = {1: "one bump", 2: "two bumps"}
    captions = [
        f"x₁ = {at[k]:.2f}: the density of x₂ has {words[n]}, in the data (black) and in the model (orange)."
        for k, n in zip(stops, bumps, strict=True)
    ]
    movie = Movie(fig, captions, stops=stops, still=25, seconds=0.8)
    upright = np.array([[[[v, -2.4], [v, 2.4]]] for v in at])
    movie.lines(axes["data"], upright, PASSIVE, width=3)
    bars = [
        [[[i - 0.38, 0], [i - 0.38, v], [i + 0.38, v], [i + 0.38, 0]] for i, v in enumerate(row)]
        for row in theta
    ]
    for part, colour in enumerate((OTHER, GOOD, PASSIVE)):
        movie.areas(
            axes["theta"],
            np.array(bars)[:, part * K : (part + 1) * K],
            [colour],
            alpha=0.8,
        )
    line = np.asarray(grid)
    movie.areas(
        axes["density"],
        np.stack([[standing_on(0, line, one)] for one in density]),
        [ACTIVE],
        alpha=0.6,
    )
    curve = np.stack([np.broadcast_to(line, true.shape), true], axis=-1)
    movie.lines(axes["density"], curve[:, None], TRUTH, width=1.8)
    return movie


if __name__ == "__main__":
    conditioner().write("conditioner")
