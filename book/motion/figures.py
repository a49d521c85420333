"""Make the moving figures, all of them or those named.

    python book/motion/figures.py [name ...]     some five minutes on two cores

Each function below computes one figure from fixed keys, checks what its titles say, and returns a
``Movie``. ``_static/motion/NAME.js`` holds it for the player (``_static/motion.js``), which draws straight
lines between frames; ``_static/motion/NAME.webp`` is one frame as a picture, for readers without
JavaScript. The directive ``{motion}`` (``_ext/motion.py``) puts the figure on a page.
"""

import sys
from functools import partial
from itertools import pairwise

import equinox as eqx
import flowjax.bijections as fb
import gauss_flows as gf
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import optax
from _style import (
    ACTIVE,
    GAUSS_KW,
    GOOD,
    MUTED,
    OTHER,
    PASSIVE,
    TRUTH,
    style_ax,
)
from book.motion._movie import Movie
from book.sweeps import masks as digits
from flowjax.distributions import Normal, Transformed
from gauss_flows.base import split_parameters
from jax.scipy.special import entr
from jax.scipy.stats import norm
from matplotlib.colors import LinearSegmentedColormap, to_hex
from paramax import non_trainable, unwrap
from sklearn.datasets import load_digits

LIMIT = 1_500_000  # bytes of a figure, both files together


def marker(ax_values):
    """One point that moves along a curve: shape (frames, 1, 2)."""
    return np.asarray(ax_values, float)[:, None, :]


def missing_nats(log_p, log_det, z):
    """KL of the density of z from the standard normal, from the data's known density."""
    return float((log_p - log_det - norm.logpdf(z).sum(axis=1)).mean())


def standing_on(floor, along, heights):
    """The outline of the area under a curve, shape (n + 2, 2)."""
    x = np.concatenate([along[:1], along, along[-1:]])
    return np.stack(
        [x, np.concatenate([[floor], heights, [floor]])], axis=1
    )


# --- Change of variables --------------------------------------------------


def change_of_variables():
    """The chapter's wave, turned up from the identity; ten slabs of a tenth each."""
    frames, end = 33, 4.0
    amounts = np.linspace(0, 1, frames)
    wave = lambda x: 0.7 * x - 0.3 * np.sin(2 * x)
    slope = lambda x: 0.7 - 0.6 * np.cos(2 * x)
    bell = lambda z: np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    z_edges = np.asarray(jax.scipy.special.ndtri(np.arange(1, 10) / 10.0))
    line = np.linspace(-end, end, 241)
    fine = np.linspace(-9, 9, 180_001)

    curves, outlines, slabs, guides, worst = [], [], [], [], 0.0
    for a in amounts:
        f = lambda x, a=a: (1 - a) * x + a * wave(x)
        density = lambda x, a=a, f=f: bell(f(x)) * (1 - a + a * slope(x))
        x_edges = np.interp(z_edges, f(fine), fine)
        curves.append([np.stack([line, f(line)], axis=1)])
        outlines.append([np.stack([line, density(line)], axis=1)])
        ends = np.concatenate([[-end], x_edges, [end]])
        tops = [np.linspace(*pair, 24) for pair in pairwise(ends)]
        slabs.append([standing_on(0, t, density(t)) for t in tops])
        guides.append(
            [
                [[-end, z], [x, z], [x, -3]]
                for x, z in zip(x_edges, z_edges, strict=True)
            ]
        )
        mass = np.cumsum(density(fine)) * (fine[1] - fine[0])
        shares = np.diff(
            np.interp(x_edges, fine, mass), prepend=0, append=1
        )
        worst = max(worst, np.abs(shares - 0.1).max())
    gf.check("slabs, all frames: area - 0.1", worst, at_most=1e-4)

    fig = plt.figure(figsize=(7.2, 4.9))
    axes = fig.subplot_mosaic(
        [["z", "map"], [".", "x"]],
        width_ratios=[1, 2.6],
        height_ratios=[1.5, 1],
    )
    colours = plt.get_cmap("cividis")(np.linspace(0.05, 1, 10))
    ends = np.concatenate([[-end], z_edges, [end]])
    for pair, colour in zip(pairwise(ends), colours, strict=True):
        part = np.linspace(*pair, 60)
        axes["z"].fill_betweenx(part, bell(part), color=colour, lw=0)
    axes["z"].plot(bell(line), line, color=TRUTH, lw=1.4)
    axes["map"].plot(line, line, **GAUSS_KW)
    axes["x"].plot(line, bell(line), **GAUSS_KW)
    style_ax(axes["z"], xlabel="density of $z$", ylabel="$z$")
    style_ax(
        axes["map"],
        title="The slabs change shape, never area",
        ylabel="$z = f(x)$",
    )
    style_ax(axes["x"], xlabel="$x$", ylabel="density of $x$")
    axes["z"].set(ylim=(-3, 3), xlim=(0.42, 0))
    axes["map"].set(xlim=(-end, end), ylim=(-3, 3))
    axes["x"].set(xlim=(-end, end), ylim=(0, 0.6))

    stops = list(range(0, frames, 4))
    captions = [
        f"Map {amounts[k]:.0%} bent: its slope lies between {1 - 0.9 * amounts[k]:.2f} and"
        f" {1 + 0.3 * amounts[k]:.2f}; every slab below holds a tenth."
        for k in stops
    ]
    captions[0] = (
        "The identity: x has the density of z, dashed; every slab holds a tenth."
    )
    movie = Movie(fig, captions, stops=stops, seconds=0.8)
    movie.lines(axes["map"], np.array(guides), "#999999", width=0.9)
    movie.lines(axes["map"], np.array(curves), TRUTH, width=2.4)
    movie.areas(axes["x"], np.array(slabs), colours)
    movie.lines(axes["x"], np.array(outlines), TRUTH, width=1.8)
    return movie


# --- The bijector menu ----------------------------------------------------


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
        "A straight map makes one bump, a bent one makes two",
        weight="bold",
        fontsize=11,
    )
    titles = ("affine: straight", "mixture CDF: bends", "spline: bends")
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
    show = lambda k: ", ".join(
        f"{name} {max(v[k], 0):.2f}" for name, v in nats.items()
    )
    captions = [
        f"After {kept[k]} step{'s' if kept[k] > 1 else ''}, nats short of the two bumps: {show(k)}."
        for k in stops
    ]
    captions[0] = (
        "Before training: the identity, or nearly so, and one standard normal bump."
        f" Nats short of the two bumps: {show(0)}."
    )
    captions[-1] += f" No straight map gets below {floor:.2f}."
    movie = Movie(fig, captions, stops=stops, seconds=0.9)
    here = np.abs(np.asarray(x)) <= 4.6
    line = np.asarray(x)[here][::4]
    for (top, below), (name, (_, colour)) in zip(
        axes.T, menu.items(), strict=True
    ):
        z, p = maps[name][:, here][:, ::4], densities[name][:, here][:, ::4]
        outline = np.stack([[standing_on(0, line, one)] for one in p])
        movie.areas(below, outline, [colour], alpha=0.55)
        curve = np.stack([np.broadcast_to(line, z.shape), z], axis=-1)
        movie.lines(top, curve[:, None], colour, width=2.6)
    return movie


# --- Conditioners ---------------------------------------------------------


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
        """What the network says, and the log-density of x2 given x1."""
        theta = layer.theta(x1[None])[0]
        z, log_slope = jax.vmap(
            layer.bijector(theta).transform_and_log_det
        )(x2)
        return theta, norm.logpdf(z) + log_slope

    log_q = jax.vmap(lambda v: model(v[0], v[1:])[1][0])(fresh)
    log_p = target.log_prob(fresh) - jax.vmap(lambda v: truth(v)[1])(
        fresh[:, 0]
    )
    short = float((log_p - log_q).mean())
    gf.check("nats short, x2 given x1", short, at_most=0.05, digits=".3f")

    at = jnp.linspace(-1.75, 1.75, frames)
    true = np.asarray(jax.vmap(lambda x1: truth(x1)[0])(at))
    theta, log_q = jax.vmap(model, (0, None))(at, grid)
    theta, density, at = np.asarray(theta), np.exp(log_q), np.asarray(at)

    fig = plt.figure(figsize=(7.2, 4.3))
    axes = fig.subplot_mosaic(
        [["data", "theta"], ["data", "density"]], width_ratios=[1.25, 1]
    )
    style_ax(
        axes["data"], title="The network reads $x_1$ …",
        xlabel="$x_1$, passive", ylabel="$x_2$, active",
    )  # fmt: skip
    axes["data"].set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), aspect="equal")
    axes["data"].scatter(
        *np.asarray(fresh[:1500]).T, s=3, color=MUTED, lw=0, alpha=0.6
    )
    style_ax(axes["theta"], title=f"… returns {3 * K} numbers …")
    axes["theta"].set(
        xlim=(-0.7, 3 * K - 0.3), ylim=(-5, 5)
    )  # a few logits go lower
    axes["theta"].axhline(0, color=TRUTH, lw=0.8)
    places = np.arange(3) * K + (K - 1) / 2
    axes["theta"].set_xticks(places, ["weights", "means", "scales"])
    axes["theta"].tick_params(axis="x", length=0)
    style_ax(
        axes["density"],
        title="… and they make this",
        xlabel="$x_2$",
        ylabel="density, given $x_1$",
    )
    axes["density"].set(
        xlim=(-2.4, 2.4), ylim=(0, 1.12 * max(true.max(), density.max()))
    )

    stops = list(range(0, frames, 5))
    peaks = lambda d: (
        (d[1:-1] > d[:-2]) & (d[1:-1] > d[2:]) & (d[1:-1] > 0.1)
    )
    bumps, others = (
        [int(peaks(d).sum()) for d in all_[stops]]
        for all_ in (true, density)
    )
    gf.check("stops where data and model differ in bumps",
             sum(a != b for a, b in zip(bumps, others, strict=True)), at_most=0, digits=".0f")  # fmt: skip
    words = {1: "one bump", 2: "two bumps"}
    captions = [
        f"x₁ = {at[k]:.2f}: the data have {words[n]} in x₂ (black line), and so has the model (orange)."
        for k, n in zip(stops, bumps, strict=True)
    ]
    movie = Movie(fig, captions, stops=stops, still=25, seconds=0.8)
    upright = np.array([[[[v, -2.4], [v, 2.4]]] for v in at])
    movie.lines(axes["data"], upright, PASSIVE, width=3)
    bars = [
        [
            [[i - 0.38, 0], [i - 0.38, v], [i + 0.38, v], [i + 0.38, 0]]
            for i, v in enumerate(row)
        ]
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


# --- Couplings ------------------------------------------------------------


def round_colours(xy, steps=24):
    """A colour for each direction from the origin, all the way round."""
    stations = [PASSIVE, GOOD, "#b8a000", "#D55E00", OTHER, PASSIVE]
    round_ = LinearSegmentedColormap.from_list("round", stations)
    turn = np.arctan2(xy[:, 1], xy[:, 0]) / (2 * np.pi) % 1
    return [
        to_hex(round_((np.floor(t * steps) + 0.5) / steps)) for t in turn
    ]


def reference_circles(ax):
    """Circles that hold a half, 90 and 99 % of a standard normal in the plane."""
    turn = np.linspace(0, 2 * np.pi, 200)
    for share in (0.5, 0.9, 0.99):
        r = np.sqrt(-2 * np.log(1 - share))
        ax.plot(
            r * np.cos(turn), r * np.sin(turn), **{**GAUSS_KW, "lw": 0.9}
        )


def couplings(key, layers=8):
    """Couplings with x1 and x2 passive in turn and nothing between them."""
    network = gf.conditioners.mlp(
        64, 2, activation=jax.nn.silu, zero_last=True
    )
    spline = gf.RQSpline(n_bins=12, interval=4.0)
    masks = np.array([True, False]), np.array([False, True])

    def pair(key):
        return fb.Chain(
            [
                gf.Coupling(
                    k,
                    shape=(2,),
                    mask=m,
                    bijector=spline,
                    conditioner=network,
                )
                for k, m in zip(jr.split(key), masks, strict=True)
            ]
        )

    stack = eqx.filter_jit(eqx.filter_vmap(pair))(
        jr.split(key, layers // 2)
    )
    base = non_trainable(Normal(jnp.zeros(2)))
    return Transformed(base, fb.Invert(fb.Scan(stack)))


def layer_by_layer(stack, x, log_p):
    """The points after each layer of stacked layers (or chains of them), and the nats missing there."""
    step = eqx.filter_jit(lambda b, h: jax.vmap(b.transform_and_log_det)(h))
    states, total = [np.asarray(x)], jnp.zeros(len(x))
    nats = [missing_nats(log_p, total, x)]
    count = len(jax.tree.leaves(eqx.filter(stack, eqx.is_array))[0])
    for i in range(count):
        here = jax.tree.map(
            lambda a, i=i: a[i] if eqx.is_array(a) else a, stack
        )
        for one in getattr(here, "bijections", [here]):
            x, log_det = step(one, x)
            total = total + log_det
            states.append(np.asarray(x))
            nats.append(missing_nats(log_p, total, x))
    return np.stack(states), np.array(nats)


def two_panels(title, right_title, xlabel, ylabel, height=3.9, lim=3.6):
    fig, (left, right) = plt.subplots(
        1, 2, figsize=(7.2, height), width_ratios=[1.32, 1]
    )
    style_ax(
        left,
        title=title,
        xlabel="first coordinate",
        ylabel="second coordinate",
    )
    left.set(xlim=(-lim, lim), ylim=(-lim, lim), aspect="equal")
    style_ax(right, title=right_title, xlabel=xlabel, ylabel=ylabel)
    return fig, left, right


def coupling_layers():
    """The spiral through the eight layers of a trained flow of couplings."""
    target = gf.targets.spiral().standardized()
    draw = jax.jit(lambda key: target.sample(key, (10_000,)))
    x, fresh = draw(jr.key(0)), draw(jr.key(5))
    fit = gf.fit(
        jr.key(1), couplings(jr.key(2)), x, steps=3000, batch_size=256,
        learning_rate=5e-3, progress=False,
    )  # fmt: skip
    log_p = jax.jit(target.log_prob)(fresh)
    states, nats = layer_by_layer(
        fit.flow.bijection.bijection.bijection, fresh, log_p
    )
    gf.check("nats missing after the last layer", nats[-1], at_most=0.08)
    gf.check("largest change of a passive coordinate", max(
        np.abs(np.diff(states[k : k + 2, :, k % 2], axis=0)).max() for k in range(8)
    ), at_most=0)  # fmt: skip

    fig, left, right = two_panels(
        "Each layer moves along one axis only", "What is missing shrinks",
        "layers", "KL from the standard normal [nats]",
    )  # fmt: skip
    reference_circles(left)
    right.plot(nats, "o-", color=MUTED, ms=4, lw=1.4)
    right.set(ylim=(0, None), xticks=range(9))
    names = ("first", "second")
    captions = [
        f"The data, two spiral arms: {nats[0]:.2f} nats from a standard normal."
    ] + [
        f"After layer {k} of 8, {names[(k - 1) % 2]} coordinate passive: points moved"
        f" {('up and down', 'left and right')[(k - 1) % 2]}. {nats[k]:.2f} nats are missing."
        for k in range(1, 9)
    ]
    movie = Movie(fig, captions, still=3, seconds=1.6)
    shown = states[:, :1600]
    movie.points(left, shown, round_colours(shown[0]))
    low = -3.6
    axis = {0: [[-3.6, low], [3.6, low]], 1: [[low, -3.6], [low, 3.6]]}
    for way in (0, 1):  # the passive axis blue, the active one orange
        still = np.tile(np.array(axis[way])[None, None], (9, 1, 1, 1))
        is_passive = [k > 0 and (k - 1) % 2 == way for k in range(9)]
        is_active = [k > 0 and (k - 1) % 2 != way for k in range(9)]
        movie.lines(left, still, PASSIVE, width=9, shown=is_passive)
        movie.lines(left, still, ACTIVE, width=9, shown=is_active)
    movie.points(
        right, marker(list(enumerate(nats))), TRUTH, radius=5, alpha=1
    )
    return movie


# --- Warm start -----------------------------------------------------------


def gaussianization():
    """Eight Gaussians through six layers of marginal maps and rotations, fitted without a gradient."""
    layers, in_map, in_turn, shown = 6, 3, 6, 1000
    target = gf.targets.gaussian_mixture().standardized()
    draw = jax.jit(lambda key: target.sample(key, (12_000,)))
    x, fresh = draw(jr.key(0)), draw(jr.key(1))
    cold = gf.gaussianization_flow(jr.key(3), 2, layers=layers)
    warm = gf.warm_start(cold, x)
    first, stack = warm.bijection.bijection.bijections
    log_p = jax.jit(target.log_prob)(fresh)
    h, log_det = jax.vmap(first.transform_and_log_det)(fresh)

    one = lambda i: jax.tree.map(
        lambda a: a[i] if eqx.is_array(a) else a, stack.bijection
    )
    step = eqx.filter_jit(lambda b, h: jax.vmap(b.transform_and_log_det)(h))
    clouds, account, stops = [np.asarray(h)], [], [0]

    def weigh(h, log_det):
        entropy = -float((log_p - log_det).mean())
        C = gf.total_correlation(np.asarray(h), joint_entropy=entropy).value
        account.append((C, missing_nats(log_p, log_det, h)))

    weigh(h, log_det)
    for i in range(layers):
        marginal, turn = one(i).bijections
        new, gained = step(marginal, h)
        clouds += [
            np.asarray((1 - t) * h + t * new)
            for t in np.arange(1, in_map + 1) / in_map
        ]
        h, log_det = new, log_det + gained
        stops.append(len(clouds) - 1)
        weigh(h, log_det)
        R = np.asarray(jax.vmap(turn.transform)(jnp.eye(2))).T
        angle = np.arctan2(R[1, 0], R[0, 0])
        for t in np.arange(1, in_turn + 1) / in_turn:
            c, s = np.cos(t * angle), np.sin(t * angle)
            clouds.append(np.asarray(h) @ np.array([[c, -s], [s, c]]).T)
        h = step(turn, h)[0]
        gf.check(
            "rotation - the layer's",
            np.abs(clouds[-1] - np.asarray(h)).max(),
            at_most=1e-5,
        )
        stops.append(len(clouds) - 1)
        weigh(h, log_det)
    clouds, (C, missing) = np.stack(clouds), np.array(account).T
    M = missing - C
    turned = M[2::2] - M[1::2]  # places 1, 3, … follow a map
    gf.check("M after a map, most", M[1::2].max(), at_most=0.05)
    # Of 12,000 points, M has a standard error of about 0.01.
    gf.check(
        "M that a rotation brings, least", turned.min(), at_least=-0.03
    )
    gf.check("M that rotations bring, in all", turned.sum(), at_least=0.2)
    change = np.abs(missing[2::2] - missing[1::2]).max()
    gf.check("KL, a rotation's change", change, at_most=1e-5)

    fig = plt.figure(figsize=(7.2, 4.1))
    axes = fig.subplot_mosaic(
        [["top", ".", "nats"], ["cloud", "side", "nats"]],
        width_ratios=[3.0, 0.55, 2.5], height_ratios=[0.55, 3.0],
    )  # fmt: skip
    cloud, top, side, nats = (
        axes[k] for k in ("cloud", "top", "side", "nats")
    )
    lim = 3.6
    style_ax(cloud, xlabel="first coordinate", ylabel="second coordinate")
    cloud.set(xlim=(-lim, lim), ylim=(-lim, lim))
    top.set_title("Marginal map, rotation, repeat")
    line = np.linspace(-lim, lim, 200)
    bell = np.exp(-0.5 * line**2) / np.sqrt(2 * np.pi)
    top.plot(line, bell, **{**GAUSS_KW, "lw": 1})
    side.plot(bell, line, **{**GAUSS_KW, "lw": 1})
    top.set(xlim=(-lim, lim), ylim=(0, 0.62))
    side.set(ylim=(-lim, lim), xlim=(0, 0.62))
    for ax in (top, side):
        ax.axis("off")
    places = np.arange(2 * layers + 1) / 2
    nats.plot(
        places,
        missing,
        "-",
        color=MUTED,
        lw=1.4,
        label="KL from the standard normal",
    )
    nats.plot(
        places, C, "-", color=PASSIVE, lw=1.4, label="total correlation C"
    )
    nats.fill_between(
        places,
        C,
        missing,
        color=OTHER,
        alpha=0.25,
        lw=0,
        label="the marginals show, M",
    )
    nats.set(ylim=(0, None))
    nats.legend(loc="upper right")
    style_ax(
        nats,
        title="Maps spend, rotations refill",
        xlabel="layers",
        ylabel="nats, held-out points",
    )

    edges = np.linspace(-lim, lim, 61)
    middle = (edges[1:] + edges[:-1]) / 2
    outline = lambda v: standing_on(0, middle, counts(v))
    counts = lambda v: (
        np.histogram(v, edges)[0] / (len(v) * (edges[1] - edges[0]))
    )
    tops = np.array([[outline(c[:, 0])] for c in clouds])
    sides = np.array([[outline(c[:, 1])[:, ::-1]] for c in clouds])

    captions = [
        f"The data: {missing[0]:.2f} nats from a standard normal, {M[0]:.2f} of them in the marginals."
    ]
    for i in range(1, layers + 1):
        a, b = 2 * i - 1, 2 * i
        captions += [
            f"Layer {i} of {layers}, marginal maps: both marginals are bent into normal ones."
            f" KL falls to {missing[a]:.2f} nats, C stays.",
            f"Layer {i} of {layers}, rotation: KL stays at {missing[b]:.2f} nats,"
            f" of which the marginals now show {M[b]:.2f}.",
        ]
    movie = Movie(fig, captions, stops=stops, still=stops[2], seconds=1.4)
    movie.points(cloud, clouds[:, :shown], round_colours(clouds[0, :shown]))
    movie.areas(top, tops, [OTHER], alpha=0.6)
    movie.areas(side, sides, [OTHER], alpha=0.6)
    at = np.interp(np.arange(len(clouds)), stops, places)
    both = np.stack([
        np.stack([at, np.interp(at, places, values)], axis=1) for values in (missing, C)
    ], axis=1)  # fmt: skip
    movie.points(nats, both[:, :1], MUTED, radius=5, alpha=1)
    movie.points(nats, both[:, 1:], PASSIVE, radius=5, alpha=1)
    return movie


# --- Depth ----------------------------------------------------------------


def overfitting():
    """Eight spline layers, trained far too long on too few points."""
    n, side, lim = 200, 84, 2.5
    target = gf.targets.spiral().standardized()
    draw = jax.jit(target.sample, static_argnums=1)
    x, fresh = draw(jr.key(0), (n,)), draw(jr.key(1), (10_000,))
    centres = (np.arange(side) + 0.5) / side * 2 * lim - lim
    grid = jnp.asarray(
        np.stack(np.meshgrid(centres, centres[::-1]), -1), jnp.float32
    )
    kept = np.unique(np.round(np.geomspace(1, 3000, 48))).astype(int)
    kept = np.concatenate([[0], kept])
    optimizer = optax.adam(3e-3)
    flow = gf.coupling_flow(jr.key(2), 2, layers=8)
    params, static = split_parameters(flow)

    @jax.jit
    def train(state, steps):
        def step(_, state):
            params, opt_state = state
            loss = lambda p: -eqx.combine(p, static).log_prob(x).mean()
            updates, opt_state = optimizer.update(
                jax.grad(loss)(params), opt_state
            )
            return optax.apply_updates(params, updates), opt_state

        return jax.lax.fori_loop(0, steps, step, state)

    @jax.jit
    def look(params):
        log_q = eqx.combine(params, static).log_prob
        return log_q(grid), log_q(x).mean(), log_q(fresh).mean()

    found, state = [], (params, optimizer.init(params))
    for steps in np.diff(kept, prepend=0):
        state = train(state, int(steps))
        found.append(look(state[0]))
    log_q, on_own, on_fresh = (
        np.array(values) for values in zip(*found, strict=True)
    )
    truth = jax.jit(target.log_prob)
    short = {
        f"its own {n} points": float(truth(x).mean()) - on_own,
        "10,000 fresh points": float(truth(fresh).mean()) - on_fresh,
    }
    own, other = short.values()
    best = int(other.argmin())
    gf.check(
        "best on fresh points, step", kept[best], at_most=1000, digits=".0f"
    )
    gf.check("end: on its own points", own[-1], at_most=-0.3, digits=".2f")
    gf.check(
        "end - best, on fresh points",
        other[-1] - other[best],
        at_least=0.5,
        digits=".2f",
    )

    fig, left, right = two_panels(
        "What the flow has learned so far", "Right of the dots: only memory",
        "steps", "nats short of the truth", lim=lim,
    )  # fmt: skip
    left.set(xlabel="", ylabel="", xticks=[], yticks=[])
    for (name, values), colour in zip(
        short.items(), (PASSIVE, ACTIVE), strict=True
    ):
        right.plot(np.maximum(kept, 0.7), values, color=colour, label=name)
    right.axhline(0, **GAUSS_KW)
    right.axvline(kept[best], color=GOOD, lw=1.4, ls=":")
    right.set(xscale="log", ylim=(-1.2, 2.0))
    right.legend(loc="lower left")
    shades = LinearSegmentedColormap.from_list(
        "", ["#ffffff", "#9ecae1", "#08519c", "#08306b"]
    )
    colours = ["", *(to_hex(shades(i / 39)) for i in range(1, 40))]
    level = np.clip(np.exp(log_q) / 1.2, 0, 1) ** 0.6
    which = np.round(level * 39).astype(int)

    def caption(k):
        start = f"After {kept[k]} step{'s' if kept[k] > 1 else ''}"
        mine = (
            f"{own[k]:.2f} nats short"
            if own[k] > 0
            else f"{-own[k]:.2f} nats better than the truth"
        )
        now = (
            f"{mine} on its own points, {other[k]:.2f} short on fresh ones."
        )
        if k == 0:
            return f"Before training, a round normal density: {now}"
        if k == best:
            return f"{start}, as good as it gets: {now}"
        return f"{start}: {now}" + (
            " It knows its own by heart." if k == len(kept) - 1 else ""
        )

    stops = sorted({*range(0, len(kept), 4), best, len(kept) - 1})
    movie = Movie(
        fig,
        [caption(k) for k in stops],
        stops=stops,
        seconds=0.9,
        smooth=False,
    )
    movie.cells(left, which, colours, gap=-0.6)
    still = np.broadcast_to(np.asarray(x), (len(kept), n, 2))
    movie.points(left, still, OTHER, radius=1.3, alpha=0.9)
    for values, colour in zip(
        short.values(), (PASSIVE, ACTIVE), strict=True
    ):
        at = np.stack(
            [np.maximum(kept, 0.7), np.clip(values, -1.2, 2)], axis=1
        )
        movie.points(right, marker(at), colour, radius=5, alpha=1)
    return movie


# --- Residual flows -------------------------------------------------------


def residual_inverse():
    """Fixed-point iteration undoes a residual block on a whole grid at once."""
    L, b, steps = 0.9, 1.6, 20

    def g(
        x,
    ):  # its Jacobian has L cos(...) off the diagonal, zeros on it: norm L at most
        waves = np.sin(b * x[..., 1] + 0.6), np.sin(b * x[..., 0] - 0.4)
        return L / b * np.stack(waves, axis=-1)

    side, along = np.linspace(-2, 2, 13), np.linspace(-2, 2, 61)
    grid = np.stack(
        [np.stack([np.full(61, s), along], 1) for s in side]
        + [np.stack([along, np.full(61, s)], 1) for s in side]
    )
    z = grid + g(grid)
    guesses = [z]
    for _ in range(steps):
        guesses.append(z - g(guesses[-1]))
    guesses = np.stack(guesses)
    error = (
        np.linalg.norm(guesses - grid, axis=-1)
        .reshape(steps + 1, -1)
        .max(axis=1)
    )
    bound = L ** np.arange(steps + 1) * error[0]
    gf.check(
        "error / bound, every step", (error / bound).max(), at_most=1 + 1e-9
    )

    fig, left, right = two_panels(
        "$x_{k+1} = z - g(x_k)$ unbends the grid", "Never above the bound",
        "steps k", "largest distance from the answer", lim=2.75,
    )  # fmt: skip
    left.plot(*grid.transpose(2, 1, 0), color="0.8", lw=0.8)
    right.semilogy(
        bound, **GAUSS_KW, label=f"the bound, {L}$^k$ × the first error"
    )
    right.semilogy(
        error,
        "o-",
        color=ACTIVE,
        ms=3.5,
        lw=1.2,
        label="largest of the whole grid",
    )
    right.set(xticks=range(0, steps + 1, 5), ylim=(None, 3))
    right.legend(loc="upper right")
    captions = [
        "The start, x₀ = z: the grid as the block has bent it. Grey: where it came from, the answer."
    ]
    captions += [
        f"After step {k}: no point is farther than {error[k]:.3f} from the answer;"
        f" the bound promised {bound[k]:.3f}."
        for k in range(1, steps + 1)
    ]
    movie = Movie(fig, captions, still=0, seconds=0.7)
    movie.lines(left, guesses, ACTIVE, width=1.6)
    movie.points(
        right, marker(list(enumerate(error))), TRUTH, radius=5, alpha=1
    )
    return movie


# --- MAF and IAF ----------------------------------------------------------


def maf_sampling():
    """Ten digits drawn from one MAF layer, by the textbook and by sweeps of all pixels."""
    images, labels = load_digits().images.astype(int), load_digits().target
    table = digits.pixel_table(images)
    scores = jax.jit(lambda key: digits.to_normal(table, images, key)[0])
    v = np.concatenate(
        [np.asarray(scores(jr.key(i))).reshape(-1, 64) for i in range(8)]
    )
    which = np.tile(np.eye(10, dtype=np.float32)[labels], (8, 1))
    layer = gf.MaskedAutoregressive(
        jr.key(1), shape=(64,), bijector=gf.RQSpline(n_bins=8, interval=5.0), cond_dim=10,
        conditioner=gf.conditioners.made(256, 2, activation=jax.nn.silu, zero_last=True),
    )  # fmt: skip
    flow = Transformed(
        non_trainable(Normal(jnp.zeros(64))), fb.Invert(layer)
    )
    fit = gf.fit(
        jr.key(2),
        flow,
        v,
        condition=which,
        steps=1500,
        learning_rate=3e-3,
        progress=False,
    )
    layer = fit.flow.bijection.bijection

    z, classes = jr.normal(jr.key(5), (10, 64)), jnp.eye(10)
    batch = lambda f: eqx.filter_jit(
        lambda layer, *rows: jax.vmap(partial(f, layer))(*rows)
    )
    sweep = batch(lambda layer, x, z, c: layer._sweep(x, z, c))
    guesses = [jnp.zeros((10, 64))]
    for _ in range(64):
        guesses.append(sweep(layer, guesses[-1], z, classes))
    exact = batch(lambda layer, z, c: layer.inverse(z, c))(
        layer, z, classes
    )
    gap = jnp.abs(guesses[-1] - exact).max()
    gf.check("64 sweeps - the incremental inverse", gap, at_most=1e-4)

    def grey(v):
        """Level of each pixel, 0 to 16."""
        ends = table.cumsum(axis=-1).reshape(64, 17)
        above = np.asarray(norm.cdf(v))[..., None] > ends
        return np.minimum(above.sum(axis=-1), 16)

    levels = np.stack([grey(v) for v in guesses])  # (65, 10, 64)
    final = levels[-1]
    # Settled: this sweep and all later ones leave the level as it is in the end.
    backwards = (levels == final[None])[::-1]
    same = np.logical_and.accumulate(backwards, axis=0)[::-1]
    done = int(np.argmax(same.all(axis=(1, 2))))
    gf.check(
        "sweeps until every pixel stays", done, at_most=32, digits=".0f"
    )

    def ramp(*ends):
        shades = LinearSegmentedColormap.from_list("", ends)
        return [to_hex(shades(level / 16)) for level in range(17)]

    # Grey is settled, orange computed now and not settled yet, pale blue unknown.
    none, unknown, now, settled, moving = 0, 1, 2, 3, 20
    colours = ["", "#dbe4ea", ACTIVE, *ramp("#ffffff", "#111111")]
    colours += ramp("#fdf3dc", "#c47f00")
    run, pixel = np.arange(66)[:, None, None], np.arange(64)
    # After run k the textbook has the first k pixels as they are in the end.
    textbook = np.where(pixel < run - 1, settled + final[None], unknown)
    textbook[np.broadcast_to(pixel == run - 1, textbook.shape)] = now
    sweeps = levels + np.where(same, settled, moving)
    sweeps = np.concatenate([sweeps, sweeps[-1:]])

    def tiles(which):
        picture = np.full((len(which), 8, 89), none)
        for i in range(10):
            picture[:, :, 9 * i : 9 * i + 8] = which[:, i].reshape(-1, 8, 8)
        return picture

    fig = plt.figure(figsize=(7.2, 4.3))
    axes = fig.subplot_mosaic(
        [["a"], ["b"], ["c"]], height_ratios=[1, 1, 1.7]
    )
    for name, title in (
        ("a", "Textbook: one pixel a run"),
        ("b", "Sweeps: all pixels in every run"),
    ):
        axes[name].set_title(title, loc="left")
        axes[name].set(xlim=(0, 89), ylim=(0, 8), aspect="equal")
        axes[name].axis("off")
    known = {
        "textbook": np.minimum(np.arange(66), 64),
        "sweeps": np.append(same.sum(axis=2).mean(axis=1), 64),
    }
    ax = axes["c"]
    ax.plot(known["textbook"], color=MUTED, lw=1.4, label="textbook")
    ax.plot(known["sweeps"], color=ACTIVE, lw=1.8, label="sweeps")
    ax.axvline(1, color=GOOD, lw=1.4, ls=":")
    ax.annotate(
        "dotted: an IAF needs one run", (25, 6), fontsize=9, color="#00704f"
    )
    ax.set(
        xlim=(0, 65),
        ylim=(0, 68),
        yticks=(0, 32, 64),
        xticks=range(0, 65, 8),
    )
    ax.legend(loc="center right")
    style_ax(
        ax,
        title=f"{done} runs instead of 64, for the same ten images",
        xlabel="runs of the network",
        ylabel="pixels settled, of 64",
    )

    captions = [
        "No run yet: the textbook knows nothing, the sweeps start from a guess."
    ]
    captions += [
        f"After run {k}: the textbook knows {k} pixels of 64,"
        f" the sweeps have settled {int(known['sweeps'][k])}."
        for k in range(1, 65)
    ]
    captions.append("Both are done, with the same ten images.")
    movie = Movie(fig, captions, still=8, seconds=0.16, smooth=False)
    movie.cells(axes["a"], tiles(textbook), colours)
    movie.cells(axes["b"], tiles(sweeps), colours)
    steps = np.arange(66)
    for name, colour in (("textbook", MUTED), ("sweeps", ACTIVE)):
        movie.points(
            ax,
            marker(np.stack([np.minimum(steps, 64), known[name]], 1)),
            colour,
            radius=5,
            alpha=1,
        )
    return movie


FIGURES = (
    change_of_variables,
    bijector_fits,
    conditioner,
    coupling_layers,
    gaussianization,
    overfitting,
    residual_inverse,
    maf_sampling,
)

if __name__ == "__main__":
    known = {figure.__name__: figure for figure in FIGURES}
    for name in sys.argv[1:] or known:
        if name not in known:
            sys.exit(f"figures are {', '.join(known)}; got {name}")
        size = known[name]().write(name)
        print(f"{name}: {size:,} bytes")
        if size > LIMIT:
            sys.exit(f"{name} takes more than {LIMIT:,} bytes")
