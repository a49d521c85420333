"""The moving figure ``overfitting``.

cd book; python -m motion.overfitting
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from matplotlib.colors import LinearSegmentedColormap, to_hex

import gauss_flows as gf
from _style import ACTIVE, GAUSS_KW, GOOD, OTHER, PASSIVE
from gauss_flows.bijection import partition
from motion.drawing import marker, two_panels
from motion.movie import Movie


def overfitting():
    """Eight spline layers, trained far too long on too few points."""
    n, side, lim = 200, 84, 2.5
    target = gf.targets.spiral().standardized()
    draw = jax.jit(target.sample, static_argnums=1)
    x, fresh = draw(jr.key(0), (n,)), draw(jr.key(1), (10_000,))
    centres = (np.arange(side) + 0.5) / side * 2 * lim - lim
    grid = jnp.asarray(np.stack(np.meshgrid(centres, centres[::-1]), -1), jnp.float32)
    kept = np.unique(np.round(np.geomspace(1, 3000, 48))).astype(int)
    kept = np.concatenate([[0], kept])
    optimizer = optax.adam(3e-3)
    flow = gf.coupling_flow(jr.key(2), 2, layers=8)
    params, static = partition(flow)

    @jax.jit
    def train(state, steps):
        def step(_, state):
            params, opt_state = state
            loss = lambda p: -eqx.combine(p, static).log_prob(x).mean()
            updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
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
    log_q, on_own, on_fresh = (np.array(values) for values in zip(*found, strict=True))
    truth = jax.jit(target.log_prob)
    short = {
        f"{n} training points": float(truth(x).mean()) - on_own,
        "10,000 fresh points": float(truth(fresh).mean()) - on_fresh,
    }
    own, other = short.values()
    best = int(other.argmin())
    gf.check("best on fresh points, step", kept[best], at_most=1000, digits=".0f")
    gf.check("end: gap on the training points", own[-1], at_most=-0.3, digits=".2f")
    gf.check(
        "end - best, on fresh points",
        other[-1] - other[best],
        at_least=0.5,
        digits=".2f",
    )

    fig, left, right = two_panels(
        "The density of the flow", "Later steps overfit",
        "steps", "gap [nats]", lim=lim,
    )  # fmt: skip
    left.set(xlabel="", ylabel="", xticks=[], yticks=[])
    for (name, values), colour in zip(short.items(), (PASSIVE, ACTIVE), strict=True):
        right.plot(np.maximum(kept, 0.7), values, color=colour, label=name)
    right.axhline(0, **GAUSS_KW)
    right.axvline(kept[best], color=GOOD, lw=1.4, ls=":")
    right.set(xscale="log", ylim=(-1.2, 2.0))
    right.legend(loc="lower left")
    shades = LinearSegmentedColormap.from_list("", ["#ffffff", "#9ecae1", "#08519c", "#08306b"])
    colours = ["", *(to_hex(shades(i / 39)) for i in range(1, 40))]
    level = np.clip(np.exp(log_q) / 1.2, 0, 1) ** 0.6
    which = np.round(level * 39).astype(int)

    def caption(k):
        start = f"After {kept[k]} step{'s' if kept[k] > 1 else ''}"
        side = "below" if own[k] > 0 else "above"
        mine = f"{abs(own[k]):.2f} nats {side} the truth"
        now = f"{mine} on the training points, {other[k]:.2f} below on fresh points."
        if k == 0:
            return f"Before training, a round normal density: {now}"
        if k == best:
            return f"{start}, the best on fresh points: {now}"
        return f"{start}: {now}"

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
    for values, colour in zip(short.values(), (PASSIVE, ACTIVE), strict=True):
        at = np.stack([np.maximum(kept, 0.7), np.clip(values, -1.2, 2)], axis=1)
        movie.points(right, marker(at), colour, radius=5, alpha=1)
    return movie


if __name__ == "__main__":
    overfitting().write("overfitting")
