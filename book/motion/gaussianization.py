"""The moving figure ``gaussianization``.

cd book; python -m motion.gaussianization
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

import gauss_flows as gf
from _style import GAUSS_KW, MUTED, OTHER, PASSIVE, style_ax
from motion.drawing import missing_nats, round_colours, standing_on
from motion.movie import Movie


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

    one = lambda i: jax.tree.map(lambda a: a[i] if eqx.is_array(a) else a, stack.bijection)
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
        clouds += [np.asarray((1 - t) * h + t * new) for t in np.arange(1, in_map + 1) / in_map]
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
    gf.check("M that a rotation brings, least", turned.min(), at_least=-0.03)
    gf.check("M that rotations bring, in all", turned.sum(), at_least=0.2)
    change = np.abs(missing[2::2] - missing[1::2]).max()
    gf.check("KL, a rotation's change", change, at_most=1e-5)

    fig = plt.figure(figsize=(7.2, 4.1))
    axes = fig.subplot_mosaic(
        [["top", ".", "nats"], ["cloud", "side", "nats"]],
        width_ratios=[3.0, 0.55, 2.5], height_ratios=[0.55, 3.0],
    )  # fmt: skip
    cloud, top, side, nats = (axes[k] for k in ("cloud", "top", "side", "nats"))
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
        label="KL divergence from the normal",
    )
    nats.plot(places, C, "-", color=PASSIVE, lw=1.4, label="total correlation")
    nats.fill_between(
        places,
        C,
        missing,
        color=OTHER,
        alpha=0.25,
        lw=0,
        label="part in the marginals",
    )
    nats.set(ylim=(0, None))
    nats.legend(loc="upper right")
    style_ax(
        nats,
        title="Only the maps reduce the KL",
        xlabel="layers",
        ylabel="nats, held-out points",
    )

    edges = np.linspace(-lim, lim, 61)
    middle = (edges[1:] + edges[:-1]) / 2
    outline = lambda v: standing_on(0, middle, counts(v))
    counts = lambda v: np.histogram(v, edges)[0] / (len(v) * (edges[1] - edges[0]))
    tops = np.array([[outline(c[:, 0])] for c in clouds])
    sides = np.array([[outline(c[:, 1])[:, ::-1]] for c in clouds])

    captions = [
        f"The data: {missing[0]:.2f} nats from the standard normal, {M[0]:.2f} of them in the marginals."
    ]
    for i in range(1, layers + 1):
        a, b = 2 * i - 1, 2 * i
        captions += [
            f"Layer {i} of {layers}, marginal maps: both marginals become normal."
            f" The KL divergence falls to {missing[a]:.2f} nats; the total correlation stays.",
            f"Layer {i} of {layers}, rotation: the KL divergence stays at {missing[b]:.2f} nats,"
            f" of which {M[b]:.2f} are now in the marginals.",
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


if __name__ == "__main__":
    gaussianization().write("gaussianization")
