"""The sweep behind the chapter "Conditioners": too long for a notebook.

    python -m experiments.conditioners.run            about ten minutes on two quiet cores

It writes fits.csv beside this file, which names the versions, the machine and the date. The
chapter draws the file and runs one cell of it again.
"""

import functools
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flowjax.bijections import Invert
from flowjax.distributions import Normal, Transformed
from paramax import non_trainable

import gauss_flows as gf
from experiments.common import mean_log_prob, seconds, write_table

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
    """Each mean is a wave across two of the passive coordinates."""
    return jnp.sin(a[:4] + a[1:5])


def crowd(a):
    """Each mean counts the passive coordinates near one place, whichever they are."""
    places = jnp.array([-1.5, -0.5, 0.5, 1.5], a.dtype)
    return jnp.exp(-0.5 * ((a[:, None] - places) / 0.3) ** 2).sum(axis=0)


def chorus(a):
    """Sixty-four means, all mixed from the same four waves."""
    tunes = jnp.sin(jnp.asarray(FREQUENCIES, a.dtype) @ a)
    return jnp.asarray(PARTS, a.dtype) @ tunes


MEANS = {"waves": waves, "crowd": crowd, "chorus": chorus}
ACTIVE = {"waves": 4, "crowd": 4, "chorus": 64}


def target(name):
    """x_A standard normal, x_B | x_A normal around the means: a density known exactly."""
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
    """Two hidden layers or blocks (attention: one block), silu, the last layer zero.

    The chapter hands in a factory of its own in place of ``kind``.
    """
    if callable(kind):
        return kind
    make = getattr(gf.conditioners, kind)
    depth = 1 if kind == "attention" else 2
    return make(width, depth, activation=jax.nn.silu, zero_last=True)


KINDS = ("mlp", "resnet", "shared_trunk", "attention")


def count(kind, width, n_in, n_out):
    """Parameters, by the formulas of the chapter's first exercise."""
    w = width
    return {
        "mlp": (n_in + 1) * w + (w + 1) * w + (w + 1) * n_out,
        "resnet": (n_in + 1) * w + 6 * (w + 1) * w + (w + 1) * n_out,
        "shared_trunk": (n_in + 1) * w + (w + 1) * w + (w + 1) * 8 + 9 * n_out,
        "attention": (n_in + 1) * w + 8 * w * w + 9 * w + (w + 1) * n_out,
    }[kind]


def widths(kind, n_out):
    """The widths whose parameters come nearest to those of attention at 8, 16 and 32."""
    sizes = [count("attention", w, PASSIVE, n_out) for w in (8, 16, 32)]
    choices = range(4, 200, 4 if kind == "attention" else 1)
    miss = lambda size: lambda w: abs(count(kind, w, PASSIVE, n_out) - size)
    return [min(choices, key=miss(size)) for size in sizes]


def layer_flow(key, name, kind, width):
    """One affine layer: with a perfect conditioner it would be the target."""
    dim = PASSIVE + ACTIVE[name]
    layer = gf.AffineCoupling(
        key,
        (dim,),
        mask=np.arange(dim) < PASSIVE,
        log_scale_bound=4.0,
        conditioner=factory(kind, width),
    )
    return Transformed(non_trainable(Normal(jnp.zeros(dim))), Invert(layer))


def points(name, key, n):
    """Samples in single precision."""
    return jax.jit(target(name).sample, static_argnums=1)(key, (n,))


@functools.cache
def data(name):
    """Training points, and what is judged: points with the truth's mean log-density."""
    x = points(name, jr.key(0), POINTS)
    fresh = points(name, jr.key(1), FRESH)
    truth = jax.jit(target(name).log_prob)
    # of one shape, so that they share one compilation
    return x, [(part, float(truth(part).mean())) for part in (x[:FRESH], fresh)]


def train(name, kind, width, keys):
    """Nats below the truth on training and on fresh points, one a key."""
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
    """Milliseconds of one gradient of one flow on 512 points, the median of many taken in turn."""
    x = points(name, jr.key(2), 512)
    runs = {}
    for kind, width in sizes:
        flow = layer_flow(jr.key(0), name, kind, width)
        params, static = gf.base.partition(flow)
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
