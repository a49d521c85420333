"""The sweep behind the chapter "Change of variables": too long for a notebook.

    python -m experiments.change_of_variables.run           both, about ten minutes on two cores
    python -m experiments.change_of_variables.run base      (or: cost)

``base`` trains flows over two base densities, to several depths, on targets of known density. ``cost``
times a determinant, in under a minute. Each writes a CSV beside this file, which names the versions, the
machine and the date. The chapter draws the files and runs one row again.
"""

import functools
import math
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flowjax.distributions import Normal, Transformed, VmapMixture
from threadpoolctl import threadpool_limits

import gauss_flows as gf
from experiments import common
from experiments.common import parameters, seconds, write_table

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
    """Eight Gaussians with trained means, scales and weights; 40 numbers."""
    means = jr.normal(key, (COMPONENTS, 2))
    scales = jnp.full((COMPONENTS, 2), 0.5)
    parts = eqx.filter_vmap(Normal)(means, scales)
    return VmapMixture(parts, jnp.ones(COMPONENTS))


def make_flow(layers, bijector="affine", base="normal"):
    """key -> a coupling flow in the plane over one of the two bases."""

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
    """One flow a key, on the same 20,000 points."""
    x = TARGETS[target].sample(jr.key(100), (POINTS,))
    return gf.fit_many(keys, make, x, steps=STEPS, batch_size=BATCH, progress=False).flow


def divergences(target, flows):
    """KL(p || q) of each flow on 20,000 fresh points, in nats."""
    p = TARGETS[target]
    return common.divergences(p, flows, p.sample(jr.key(101), (20_000,)))


def outside(x):
    """The share of points, shape (..., n, 2), that are over four standard deviations from all eight modes."""
    angles = jnp.arange(8) * jnp.pi / 4
    modes = 2 * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    x = x * jnp.asarray(MODES.std, x.dtype)  # the units of the modes
    away = jnp.linalg.norm(x[..., None, :] - modes, axis=-1).min(axis=-1)
    return (away > 4 * SCALE).mean(axis=-1)


@eqx.filter_jit
def bridges(flows):
    """Of each flow, the share of 20,000 samples that lie outside all modes."""
    of_one = lambda flow: outside(flow.sample(jr.key(102), (20_000,)))
    return eqx.filter_vmap(of_one)(flows)


def sweep_base():
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
    name = "change_of_variables/base_densities.csv"
    write_table(name, [*fields, "kl", "bridge"], rows)


# The shortest time of each is that of an undisturbed machine.
shortest = functools.partial(seconds, take=min, budget=math.inf)


@jax.jit
def by_elimination(J):
    return jnp.linalg.slogdet(J)[1]


@jax.jit
def by_diagonal(diagonal):
    return jnp.log(jnp.abs(diagonal)).sum()


def triangle(size):
    """A random lower triangular matrix with a diagonal away from 0 on average."""
    return jnp.tril(jr.normal(jr.key(0), (size, size))) + 2 * jnp.eye(size)


def sweep_cost():
    """Milliseconds for log|det J|: any Jacobian by elimination, a triangular one by its diagonal."""
    rows = []
    for size in (32, 64, 128, 256, 512, 1024, 2048):
        J = triangle(size)
        d = jnp.diag(J)
        ways = [lambda J=J: by_elimination(J), lambda d=d: by_diagonal(d)]
        with threadpool_limits(1):  # else small sizes and large are not alike
            times = shortest(ways, rounds=40)
        rows.append([size, *(f"{1e3 * t:.4g}" for t in times)])
        print(rows[-1], flush=True)
    name = "change_of_variables/determinant_cost.csv"
    write_table(name, ["size", "full", "diagonal"], rows)


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["base", "cost"]
    if "base" in wanted:
        sweep_base()
    if "cost" in wanted:
        sweep_cost()
