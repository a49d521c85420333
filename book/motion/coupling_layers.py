"""The moving figure ``coupling_layers``.

cd book; python -m motion.coupling_layers
"""

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flowjax.distributions import Normal, Transformed
from paramax import non_trainable

import gauss_flows as gf
from _style import ACTIVE, GAUSS_KW, MUTED, PASSIVE, TRUTH
from motion.drawing import marker, missing_nats, round_colours, two_panels
from motion.movie import Movie


def reference_circles(ax):
    """Circles that hold a half, 90 and 99 % of a standard normal in the plane."""
    turn = np.linspace(0, 2 * np.pi, 200)
    for share in (0.5, 0.9, 0.99):
        r = np.sqrt(-2 * np.log(1 - share))
        ax.plot(r * np.cos(turn), r * np.sin(turn), **{**GAUSS_KW, "lw": 0.9})


def couplings(key, layers=8):
    """Couplings with x1 and x2 passive in turn and nothing between them."""
    network = gf.conditioners.mlp(64, 2, activation=jax.nn.silu, zero_last=True)
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

    stack = eqx.filter_jit(eqx.filter_vmap(pair))(jr.split(key, layers // 2))
    base = non_trainable(Normal(jnp.zeros(2)))
    return Transformed(base, fb.Invert(fb.Scan(stack)))


def layer_by_layer(stack, x, log_p):
    """The points after each layer of stacked layers (or chains of them), and the nats missing there."""
    step = eqx.filter_jit(lambda b, h: jax.vmap(b.transform_and_log_det)(h))
    states, total = [np.asarray(x)], jnp.zeros(len(x))
    nats = [missing_nats(log_p, total, x)]
    count = len(jax.tree.leaves(eqx.filter(stack, eqx.is_array))[0])
    for i in range(count):
        here = jax.tree.map(lambda a, i=i: a[i] if eqx.is_array(a) else a, stack)
        for one in getattr(here, "bijections", [here]):
            x, log_det = step(one, x)
            total = total + log_det
            states.append(np.asarray(x))
            nats.append(missing_nats(log_p, total, x))
    return np.stack(states), np.array(nats)


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
    states, nats = layer_by_layer(fit.flow.bijection.bijection.bijection, fresh, log_p)
    gf.check("nats missing after the last layer", nats[-1], at_most=0.08)
    gf.check("largest change of a passive coordinate", max(
        np.abs(np.diff(states[k : k + 2, :, k % 2], axis=0)).max() for k in range(8)
    ), at_most=0)  # fmt: skip

    fig, left, right = two_panels(
        "Each layer moves along one axis only", "The divergence falls",
        "layers", "KL from the standard normal [nats]",
    )  # fmt: skip
    reference_circles(left)
    right.plot(nats, "o-", color=MUTED, ms=4, lw=1.4)
    right.set(ylim=(0, None), xticks=range(9))
    names = ("first", "second")
    captions = [f"The data, two spiral arms: {nats[0]:.2f} nats from the standard normal density."] + [
        f"After layer {k} of 8, {names[(k - 1) % 2]} coordinate passive: the points moved"
        f" {('up and down', 'left and right')[(k - 1) % 2]}. {nats[k]:.2f} nats remain."
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
    movie.points(right, marker(list(enumerate(nats))), TRUTH, radius=5, alpha=1)
    return movie


if __name__ == "__main__":
    coupling_layers().write("coupling_layers")
