"""The experiment behind the chapter "Conditioners" that takes too long for a notebook.

    python -m experiments.conditioners.run            about ten minutes on two quiet cores

It writes fits.csv beside this file. The first line of the table names the versions, the machine and the
date. The chapter draws the table and repeats one of the runs.
"""

import functools
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flowjax.bijections import Invert

import gauss_flows as gf
from experiments.common import mean_log_prob, seconds, write_table
from gauss_flows.bijection import partition

PASSIVE, NOISE = 6, 0.25
POINTS, FRESH, STEPS, BATCH, RATE, SEEDS = (
    40_000,
    20_000,
    1000,
    128,
    2e-2,
    5,
)

_RNG = np.random.default_rng(0)
FREQUENCIES = _RNG.standard_normal((4, PASSIVE)) / 2
PARTS = _RNG.standard_normal((64, 4)) / 2


def waves(a):
    """Return four means; each is the sine of the sum of two passive coordinates."""
    return jnp.sin(a[:4] + a[1:5])


def counts(a):
    """Return four means; each is a smooth count of the passive coordinates near one of four places."""
    places = jnp.array([-1.5, -0.5, 0.5, 1.5], a.dtype)
    return jnp.exp(-0.5 * ((a[:, None] - places) / 0.3) ** 2).sum(axis=0)


def shared_waves(a):
    """Return 64 means, all linear combinations of the same four sines."""
    sines = jnp.sin(jnp.asarray(FREQUENCIES, a.dtype) @ a)
    return jnp.asarray(PARTS, a.dtype) @ sines


MEANS = {"waves": waves, "counts": counts, "shared_waves": shared_waves}
ACTIVE = {"waves": 4, "counts": 4, "shared_waves": 64}


def target(name):
    """Return a target of known density: x_A standard normal, and x_B given x_A normal around the means."""
    mean, dim = MEANS[name], PASSIVE + ACTIVE[name]
    constant = dim / 2 * float(np.log(2 * np.pi))
    log_noise = ACTIVE[name] * float(np.log(NOISE))

    def log_density(x):
        a, b = x[:PASSIVE], x[PASSIVE:]
        squares = (a**2).sum() + (((b - mean(a)) / NOISE) ** 2).sum()
        return -0.5 * squares - constant - log_noise

    def sampler(key):
        noise = jr.normal(key, (dim,))
        a = noise[:PASSIVE]
        return jnp.concatenate([a, mean(a) + NOISE * noise[PASSIVE:]])

    entropy = dim / 2 + constant + log_noise
    return gf.targets.Target((dim,), log_density, sampler, (0.0, 1.0), lambda: entropy)


def factory(kind, width):
    """Return a factory of networks with two hidden layers or blocks (attention: one) and a zero last layer.

    ``kind`` may also be a factory, which is returned as it is.
    """
    if callable(kind):
        return kind
    make = getattr(gf.conditioners, kind)
    depth = 1 if kind == "attention" else 2
    return make(width, depth, activation=jax.nn.silu, zero_last=True)


KINDS = ("mlp", "resnet", "shared_trunk", "attention")


def count(kind, width, n_in, n_out):
    """Return the number of parameters by the formulas of the chapter's first exercise."""
    w = width
    return {
        "mlp": (n_in + 1) * w + (w + 1) * w + (w + 1) * n_out,
        "resnet": (n_in + 1) * w + 6 * (w + 1) * w + (w + 1) * n_out,
        "shared_trunk": (n_in + 1) * w + (w + 1) * w + (w + 1) * 8 + 9 * n_out,
        "attention": (n_in + 1) * w + 8 * w * w + 9 * w + (w + 1) * n_out,
    }[kind]


def widths(kind, n_out):
    """Return three widths with nearly as many parameters as attention of width 8, 16 and 32."""
    sizes = [count("attention", w, PASSIVE, n_out) for w in (8, 16, 32)]
    choices = range(4, 200, 4 if kind == "attention" else 1)
    miss = lambda size: lambda w: abs(count(kind, w, PASSIVE, n_out) - size)
    return [min(choices, key=miss(size)) for size in sizes]


def layer_flow(key, name, kind, width):
    """Return a flow of one affine coupling layer, which equals the target if its conditioner is exact."""
    dim = PASSIVE + ACTIVE[name]
    layer = gf.AffineCoupling(
        key,
        (dim,),
        mask=np.arange(dim) < PASSIVE,
        log_scale_bound=4.0,
        conditioner=factory(kind, width),
    )
    return gf.Transformed(gf.standard_normal(dim), Invert(layer))


def points(name, key, n):
    """Return n samples of the target of that name."""
    return jax.jit(target(name).sample, static_argnums=1)(key, (n,))


@functools.cache
def data(name):
    """Return training points, and two sets of test points with their mean log-density under the target."""
    x = points(name, jr.key(0), POINTS)
    fresh = points(name, jr.key(1), FRESH)
    truth = jax.jit(target(name).log_prob)
    # both sets have the same shape, so that one compiled program serves both
    return x, [(part, float(truth(part).mean())) for part in (x[:FRESH], fresh)]


def train(name, kind, width, keys):
    """Train one flow per key; return the divergences in nats on training points and on fresh points."""
    x, judged = data(name)
    flows = gf.fit_many(
        keys,
        lambda key: layer_flow(key, name, kind, width),
        x,
        steps=STEPS,
        batch_size=BATCH,
        learning_rate=RATE,
        progress=False,
    ).flow
    return [truth - np.asarray(mean_log_prob(flows, part)) for part, truth in judged]


def step_times(name, sizes):
    """Return the median time in milliseconds of one gradient of one flow on 512 points."""
    x = points(name, jr.key(2), 512)
    runs = {}
    for kind, width in sizes:
        flow = layer_flow(jr.key(0), name, kind, width)
        params, static = partition(flow)
        loss = lambda p, static=static: -eqx.combine(p, static).log_prob(x).mean()
        runs[kind, width] = (jax.jit(jax.grad(loss)), params)
    calls = [functools.partial(run, params) for run, params in runs.values()]
    times = seconds(calls, rounds=60, budget=60)
    return {which: 1000 * t for which, t in zip(runs, times, strict=True)}


def main():
    rows = []
    for name in MEANS:
        n_out = 2 * ACTIVE[name]
        sizes = [(kind, w) for kind in KINDS for w in widths(kind, n_out)]
        times = step_times(name, sizes)
        for kind, width in sizes:
            start = time.time()
            gaps = train(name, kind, width, jr.split(jr.key(3), SEEDS))
            size = count(kind, width, PASSIVE, n_out)
            for seed, pair in enumerate(zip(*gaps, strict=True)):
                rows.append(
                    [name, kind, width, size, seed]
                    + [f"{v:.4g}" for v in pair]
                    + [f"{times[kind, width]:.3g}"]
                )
            print(name, kind, width, size, np.round(np.median(gaps[1]), 3),
                  f"{times[kind, width]:.2f} ms, {time.time() - start:.0f} s", flush=True)  # fmt: skip
    fields = ["target", "kind", "width", "size", "seed"]
    write_table("conditioners/fits.csv", [*fields, "train", "fresh", "step_ms"], rows)


if __name__ == "__main__":
    main()
