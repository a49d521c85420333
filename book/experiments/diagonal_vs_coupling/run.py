"""The experiments of the chapter "Diagonal flows and coupling flows": can rotations replace a network?

    python -m experiments.diagonal_vs_coupling.run            all three, about eight minutes on two cores
    python -m experiments.diagonal_vs_coupling.run fits       (or: cost, warm)

Each experiment writes a CSV beside this file, which names the versions, the machine and the date. The
chapter draws the tables, imports the functions below and repeats a small part of one experiment.
"""

import math
import sys
import time

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from flowjax.bijections import Chain, Invert, Scan

import gauss_flows as gf
from experiments.common import (
    divergences,
    parameters,
    step_seconds,
    write_table,
)

POINTS, STEPS, BATCH, SEEDS = 50_000, 600, 256, 5
ANGLE, SCALE = np.pi / 6, 0.3
BIJECTOR = gf.MixtureGaussianCDF(8)
LAYERS = (1, 2, 4, 8, 16)


def bumps():
    """Yield the weights and means of two mixtures with scales ``SCALE``, mean 0 and variance 1."""
    for means, weights in (
        (np.array([-1.0, 1.0]), np.array([0.5, 0.5])),
        (np.array([-1.8, 0.0, 1.2]), np.array([0.2, 0.4, 0.4])),
    ):
        centred = means - means @ weights
        spread = np.sqrt((1 - SCALE**2) / (centred**2 @ weights))
        yield weights, centred * spread


def product_of_mixtures(angle=0.0):
    """Return the density of two independent coordinates with two and three peaks, rotated by an angle."""
    (weights_1, means_1), (weights_2, means_2) = bumps()
    means = np.stack(np.meshgrid(means_1, means_2, indexing="ij"), axis=-1)
    weights = np.outer(weights_1, weights_2)
    return gf.targets.gaussian_mixture(means.reshape(-1, 2) @ turn(angle).T, SCALE, weights.ravel())


def turn(angle):
    """Return the matrix that rotates the plane by an angle."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


TARGETS = {
    "product": product_of_mixtures(),
    "turned product": product_of_mixtures(ANGLE),
    "two moons": gf.targets.two_moons().standardized(),
    "rings": gf.targets.rings().standardized(),
}


def stacked_diagonal(key, layers=8):
    """Return a flow of diagonal layers without rotations between them."""
    layer = lambda _: gf.MarginalGaussianization((2,), bijector=BIJECTOR)
    stack = Scan(eqx.filter_vmap(layer)(jr.split(key, layers)))
    return gf.Transformed(gf.standard_normal(2), Invert(Chain([gf.ActNorm((2,)), stack])))


def coupling(layers, width):
    network = gf.conditioners.mlp(width, 1, activation=jax.nn.silu, zero_last=True)
    return lambda key: gf.coupling_flow(key, 2, layers=layers, bijector=BIJECTOR, conditioner=network)


def diagonal(layers):
    return lambda key: gf.gaussianization_flow(key, 2, layers=layers, bijector=BIJECTOR)


MODELS = {
    **{f"rotations {n - 1}": diagonal(n) for n in LAYERS},
    "8 layers, no rotation": lambda key: stacked_diagonal(key, 8),
    "coupling 2 x 3": coupling(2, 3),
    "coupling 4 x 7": coupling(4, 7),
    "coupling 8 x 32": coupling(8, 32),
}
LARGE = ("rotations 7", "rotations 15", "coupling 8 x 32")  # trained on the last two targets only


def draw(target, seed, n):
    """Return a sample of a target, shape (n, 2)."""
    sample = lambda key: TARGETS[target].sample(key, (n,))
    return jax.jit(sample)(jr.key(seed))


def train(target, model, keys):
    """Train one flow per key. Return the flows and their held-out KL in nats."""
    p = TARGETS[target]
    x, fresh = draw(target, 1, POINTS), draw(target, 2, 20_000)
    flows = gf.fit_many(
        keys,
        MODELS[model],
        x,
        steps=STEPS,
        batch_size=BATCH,
        progress=False,
    ).flow
    return flows, divergences(p, flows, fresh)


def warm(target, rotations, key):
    """Set a diagonal flow by iterative Gaussianization, without training. Return its held-out KL in nats."""
    flow = MODELS[f"rotations {rotations}"](key)
    flow = gf.warm_start(flow, draw(target, 1, 20_000))
    fresh = draw(target, 2, 20_000)
    log_ratio = lambda flow, x: TARGETS[target].log_prob(x) - flow.log_prob(x)
    return float(eqx.filter_jit(log_ratio)(flow, fresh).mean())


def sweep_fits():
    rows, keys = [], jr.split(jr.key(0), SEEDS)
    for model in MODELS:
        for target in list(TARGETS)[2 * (model in LARGE) :]:
            start = time.time()
            divergence = train(target, model, keys)[1]
            rows += [[target, model, seed, f"{kl:.4f}"] for seed, kl in enumerate(divergence)]
            rounded = np.round(np.sort(divergence), 3)
            took = f"{time.time() - start:.0f} s"
            print(target, "|", model, rounded, took, flush=True)
    fields = ["target", "model", "seed", "kl"]
    write_table("diagonal_vs_coupling/fits.csv", fields, rows)


def sweep_cost():
    """Measure the milliseconds of one gradient on a batch: the least of many, taken in turn."""
    x = jr.normal(jr.key(1), (BATCH, 2))
    options = {"rounds": 40, "budget": math.inf, "take": min}
    times = step_seconds(MODELS.values(), x, **options)
    rows = [
        [model, parameters(make), f"{1e3 * t:.3g}"]
        for (model, make), t in zip(MODELS.items(), times, strict=True)
    ]
    print(rows)
    fields = ["model", "parameters", "step_ms"]
    write_table("diagonal_vs_coupling/step_cost.csv", fields, rows)


def sweep_warm():
    rows = []
    for target in list(TARGETS)[2:]:
        for layers in LAYERS:
            for seed, key in enumerate(jr.split(jr.key(0), SEEDS)):
                kl = warm(target, layers - 1, key)
                rows.append([target, layers - 1, seed, f"{kl:.4f}"])
            print(target, layers - 1, rows[-SEEDS:], flush=True)
    fields = ["target", "rotations", "seed", "kl"]
    write_table("diagonal_vs_coupling/warm_starts.csv", fields, rows)


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["fits", "cost", "warm"]
    if "fits" in wanted:
        sweep_fits()
    if "cost" in wanted:
        sweep_cost()
    if "warm" in wanted:
        sweep_warm()
