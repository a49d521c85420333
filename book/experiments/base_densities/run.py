"""Train flows over two base densities: too long for a notebook.

    python -m experiments.base_densities.run           about ten minutes on two cores

Coupling flows of several depths, over a normal base and over a mixture base, are trained on two targets of
known density. The table ``base_densities.csv`` beside this file names the versions, the machine and the
date. The chapter "Depth and stability" draws the table and repeats one row of it.
"""

import time

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flowjax.distributions import Normal, Transformed, VmapMixture

import gauss_flows as gf
from experiments import common
from experiments.common import parameters, write_table

SCALE = 0.15
MODES = gf.targets.gaussian_mixture(scales=SCALE)  # eight on a circle of radius 2
TARGETS = {
    "eight modes": MODES.standardized(),
    "spiral": gf.targets.spiral().standardized(),
}
BIJECTORS = {
    "affine": gf.bijectors.exp_affine(2.0),
    "spline": gf.RQSpline(n_bins=8, interval=4.0),
}
DEPTHS = {"affine": (1, 2, 4, 8, 16), "spline": (1, 2, 4)}
COMPONENTS = 8
POINTS, STEPS, BATCH, WIDTH = 20_000, 1500, 256, 32
SEEDS = 5


def mixture_base(key):
    """Return eight Gaussians with trainable means, scales and weights: 40 numbers."""
    means = jr.normal(key, (COMPONENTS, 2))
    scales = jnp.full((COMPONENTS, 2), 0.5)
    parts = eqx.filter_vmap(Normal)(means, scales)
    return VmapMixture(parts, jnp.ones(COMPONENTS))


def make_flow(layers, bijector="affine", base="normal"):
    """Return a function from a key to a coupling flow in the plane over one of the two bases."""

    def make(key):
        flow_key, base_key = jr.split(key)
        flow = gf.coupling_flow(
            flow_key,
            2,
            layers=layers,
            bijector=BIJECTORS[bijector],
            nn_width=WIDTH,
        )
        if base == "normal":
            return flow
        return Transformed(mixture_base(base_key), flow.bijection)

    return make


def train(target, make, keys):
    """Train one flow for each key, all on the same 20,000 points."""
    x = TARGETS[target].sample(jr.key(100), (POINTS,))
    return gf.fit_many(keys, make, x, steps=STEPS, batch_size=BATCH, progress=False).flow


def divergences(target, flows):
    """Estimate KL(p || q) of each flow on 20,000 fresh points, in nats."""
    p = TARGETS[target]
    return common.divergences(p, flows, p.sample(jr.key(101), (20_000,)))


def outside(x):
    """Return the share of points, shape (..., n, 2), over four standard deviations from all eight modes."""
    angles = jnp.arange(8) * jnp.pi / 4
    modes = 2 * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    x = x * jnp.asarray(MODES.std, x.dtype)  # the units of the modes
    away = jnp.linalg.norm(x[..., None, :] - modes, axis=-1).min(axis=-1)
    return (away > 4 * SCALE).mean(axis=-1)


@eqx.filter_jit
def bridges(flows):
    """Return, for each flow, the share of 20,000 samples that lie outside all modes."""
    of_one = lambda flow: outside(flow.sample(jr.key(102), (20_000,)))
    return eqx.filter_vmap(of_one)(flows)


def sweep():
    rows, keys = [], jr.split(jr.key(0), SEEDS)
    for target in TARGETS:
        for bijector, depths in DEPTHS.items():
            for base in ("normal", "mixture"):
                for layers in depths:
                    if base == "mixture" and layers > 4:
                        continue
                    start = time.time()
                    make = make_flow(layers, bijector, base)
                    flows = train(target, make, keys)
                    kl = divergences(target, flows)
                    bridge = (
                        np.asarray(bridges(flows), float)
                        if target == "eight modes"
                        else np.full(SEEDS, np.nan)
                    )
                    count = parameters(make)
                    rows += [
                        [target, bijector, base, layers, count, seed] + [f"{v:.4g}" for v in values]
                        for seed, values in enumerate(zip(kl, bridge, strict=True))
                    ]
                    print(
                        target,
                        bijector,
                        base,
                        layers,
                        count,
                        np.round(np.sort(kl), 3),
                        np.round(np.median(bridge), 4),
                        f"{time.time() - start:.0f} s",
                        flush=True,
                    )
    fields = ["target", "bijector", "base", "layers", "parameters", "seed"]
    write_table("base_densities/base_densities.csv", [*fields, "kl", "bridge"], rows)


if __name__ == "__main__":
    sweep()
