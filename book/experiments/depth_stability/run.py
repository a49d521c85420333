"""The experiments behind the chapter "Depth and stability": too long for a notebook.

    python -m experiments.depth_stability.run            both, about twenty minutes on two cores
    python -m experiments.depth_stability.run depth      (or: stability)

Each writes a CSV beside this file, which names the versions, the machine and the date. The chapter
draws the files and runs one cell of each again.
"""

import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import gauss_flows as gf
from experiments.common import mean_log_prob, write_table

TARGET_RAW = gf.targets.spiral()
TARGET = TARGET_RAW.standardized()
POINTS, STEPS, BATCH = 3000, 1200, 512
LAYERS = (1, 2, 4, 8, 16)
SEEDS = 5

DEPTHS = (2, 4, 8, 16)
RATES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
GUARDS = {  # bound of the log-scale, largest gradient norm, ActNorm, set from data
    "no guard": (np.inf, None, False, False),
    "clipping": (np.inf, 1.0, False, False),
    "bounded scales": (2.0, None, False, False),
    "ActNorm, set from data": (np.inf, None, True, True),
    "ActNorm, not set": (np.inf, None, True, False),
    "all guards": (2.0, 1.0, True, True),
}


def training_points():
    """The points of the document that this chapter answers: NumPy's generator, seed 0."""
    rng = np.random.default_rng(0)
    t = rng.uniform(0.5, 3.5, POINTS)
    arm = (2 * rng.integers(0, 2, POINTS) - 1)[:, None]
    curve = np.stack([t * np.cos(2.5 * t), t * np.sin(2.5 * t)], axis=1)
    xy = arm * curve + 0.08 * rng.standard_normal((POINTS, 2))
    return jnp.asarray((xy - TARGET_RAW.mean) / TARGET_RAW.std, jnp.float32)


def fresh_points():
    return TARGET.sample(jr.key(101), (20_000,))


def train_depth(layers, keys):
    """Spline flows by the package's defaults, one a key: (flows, nats below the data's entropy)."""
    make = lambda key: gf.coupling_flow(key, 2, layers=layers)
    x = training_points()
    flows = gf.fit_many(keys, make, x, steps=STEPS, batch_size=BATCH, progress=False).flow
    gaps = {}
    for name, points in (("train", x), ("test", fresh_points())):
        truth = float(TARGET.log_prob(points).mean())
        gaps[name] = truth - np.asarray(mean_log_prob(flows, points), float)
    return flows, gaps


def round_trips(flows, scale):
    """Largest |x - back(z)| over points ``scale`` standard deviations out, relative to |x|; shape (m,)."""
    kind = jnp.result_type(float)
    cast = lambda a: a.astype(kind) if eqx.is_inexact_array(a) else a
    flows = jax.tree.map(cast, flows)
    points = fresh_points()[:1000] if scale == 1 else scale * jr.normal(jr.key(102), (1000, 2))
    points = points.astype(kind)

    def of_one(flow):
        bijection = flow.bijection
        back = jax.vmap(lambda x: bijection.transform(bijection.inverse(x)))(points)
        return (jnp.abs(back - points).max(axis=1) / jnp.abs(points).max(axis=1)).max()

    return np.asarray(eqx.filter_jit(eqx.filter_vmap(of_one))(flows), float)


def train_stack(guard, depth, rates, keys):
    """Affine stacks in data units under a guard, one a key and rate: the final loss, nan if not finite."""
    bound, clip, actnorm, from_data = GUARDS[guard]
    x = training_points()

    def make(key):
        flow = gf.coupling_flow(
            key, 2, layers=depth, bijector=gf.Parametrized(gf.bijectors.exp_affine(bound)),
            conditioner=gf.conditioners.mlp(24, 2), actnorm=actnorm,
        )  # fmt: skip
        return gf.data_init(flow, x) if from_data else flow

    result = gf.fit_many(
        keys,
        make,
        x,
        steps=200,
        batch_size=256,
        learning_rate=rates,
        clip_norm=clip,
        progress=False,
    )
    loss = result.train_loss[:, -20:].mean(axis=1)
    return np.where(result.failed_step >= 0, np.nan, loss)


def sweep_depth():
    rows = []
    for layers in LAYERS:
        start = time.time()
        flows, gaps = train_depth(layers, jr.split(jr.key(0), SEEDS))
        errors = {}
        for x64 in (False, True):
            with jax.enable_x64(x64):
                for scale in (1, 10, 30):
                    errors[x64, scale] = round_trips(flows, scale)
        columns = [gaps["train"], gaps["test"], *errors.values()]
        for seed, values in enumerate(zip(*columns, strict=True)):
            rows.append([layers, seed, *(f"{v:.4g}" for v in values)])
        medians = [round(float(np.median(gap)), 3) for gap in gaps.values()]
        print(layers, medians, f"{time.time() - start:.0f} s", flush=True)
    names = [f"float{64 if x64 else 32}_{scale}" for x64, scale in errors]
    write_table("depth_stability/depth.csv", ["layers", "seed", "train", "test", *names], rows)


def sweep_stability():
    rows, seeds = [], 5
    keys = jr.split(jr.key(1), seeds)
    for guard in GUARDS:
        for depth in DEPTHS:
            many = jnp.concatenate([keys] * len(RATES))
            losses = train_stack(guard, depth, np.repeat(RATES, seeds), many)
            for i, rate in enumerate(RATES):
                part = losses[i * seeds : (i + 1) * seeds]
                rows += [[guard, depth, rate, seed, f"{v:.4g}"] for seed, v in enumerate(part)]
            print(
                guard,
                depth,
                np.round(np.median(losses.reshape(-1, seeds), axis=1), 2),
                flush=True,
            )
    write_table("depth_stability/guards.csv", ["guard", "depth", "rate", "seed", "loss"], rows)


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["depth", "stability"]
    if "depth" in wanted:
        sweep_depth()
    if "stability" in wanted:
        sweep_stability()
