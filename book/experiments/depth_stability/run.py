"""Run the experiments of the chapter "Depth and stability", which are too long for a notebook.

    python -m experiments.depth_stability.run             all, about twenty minutes on two cores
    python -m experiments.depth_stability.run gradients   one of them: depth, stability or gradients

Each writes a CSV beside this file, which names the versions, the machine and the date. The chapter
draws the tables and repeats a small part of each.
"""

import sys
import time

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import gauss_flows as gf
from experiments.common import mean_log_prob, parameters, write_table
from gauss_flows.bijection import partition

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

LARGEST, STACKS = 16, 20  # blocks of a random stack, and the number of stacks of each kind
COUPLINGS = {  # a class, and whether the last layer of its network starts at zero
    "affine": (gf.AffineCoupling, False),
    "spline": (gf.RQSplineCoupling, False),
    "affine, zero start": (gf.AffineCoupling, True),
}


def training_points():
    """Return the 3,000 training points, drawn by NumPy's generator with seed 0."""
    rng = np.random.default_rng(0)
    t = rng.uniform(0.5, 3.5, POINTS)
    arm = (2 * rng.integers(0, 2, POINTS) - 1)[:, None]
    curve = np.stack([t * np.cos(2.5 * t), t * np.sin(2.5 * t)], axis=1)
    xy = arm * curve + 0.08 * rng.standard_normal((POINTS, 2))
    return jnp.asarray((xy - TARGET_RAW.mean) / TARGET_RAW.std, jnp.float32)


def fresh_points():
    """Return 20,000 points of the spiral that no flow is trained on."""
    return TARGET.sample(jr.key(101), (20_000,))


def train_depth(layers, keys):
    """Train one spline flow per key; return the flows and their KL estimates on both sets of points."""
    make = lambda key: gf.coupling_flow(key, 2, layers=layers)
    x = training_points()
    flows = gf.fit_many(keys, make, x, steps=STEPS, batch_size=BATCH, progress=False).flow
    gaps = {}
    for name, points in (("train", x), ("test", fresh_points())):
        truth = float(TARGET.log_prob(points).mean())
        gaps[name] = truth - np.asarray(mean_log_prob(flows, points), float)
    return flows, gaps


def round_trips(flows, scale):
    """Return each flow's largest relative round-trip error over points ``scale`` standard deviations wide."""
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
    """Train one affine stack per key and rate under a guard; return the final losses, NaN if not finite."""
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


def random_block(key, kind):
    """Return a random rotation of the plane and two couplings, one for each coordinate."""
    turn_key, first, second = jr.split(key, 3)
    layer, zero_last = COUPLINGS[kind]
    network = gf.conditioners.mlp(24, 2, zero_last=zero_last)
    coupling = lambda key: layer(key, (2,), conditioner=network)
    flip = fb.Flip((2,))
    rotation = gf.HouseholderRotation(2, (2,), key=turn_key)
    return fb.Chain([rotation, coupling(first), flip, coupling(second), flip])


@eqx.filter_jit
def random_stack(key, kind):
    """Return sixteen random blocks, stacked; the first of them are the stacks of smaller depths."""
    return eqx.filter_vmap(lambda key: random_block(key, kind))(jr.split(key, LARGEST))


@eqx.filter_jit
def block_gradients(stack, depth, x):
    """Return the root mean square of the loss's gradient over the weights of each block, shape (16,).

    The stack consists of the first ``depth`` blocks; the entries of the others are 0. The loop always runs
    over all sixteen and skips the last ones, so that one compiled program serves all depths.
    """
    params, static = partition(stack)  # the trainable numbers, and the rest

    def loss(params):
        arrays, rest = eqx.partition(eqx.combine(params, static), eqx.is_array)

        def step(carry, layer):
            points, total, index = carry
            block = eqx.combine(layer, rest)
            new, log_det = jax.vmap(block.transform_and_log_det)(points)
            used = index < depth
            return (jnp.where(used, new, points), total + jnp.where(used, log_det, 0), index + 1), None

        (z, total, _), _ = jax.lax.scan(step, (x, jnp.zeros(len(x)), 0), arrays)
        return (0.5 * (z**2).sum(axis=1) - total).mean()  # -log q, up to a constant

    gradients = [g.reshape(LARGEST, -1) for g in jax.tree.leaves(jax.grad(loss)(params))]
    return jnp.sqrt((jnp.concatenate(gradients, axis=1) ** 2).mean(axis=1))


def weights_per_block(kind):
    """Return the number of trainable numbers of one block."""
    return parameters(lambda key: random_block(key, kind))


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


def sweep_gradients():
    rows = []
    with jax.enable_x64(True):
        x = training_points()[:1000].astype(float)
        for kind in COUPLINGS:
            for seed in range(STACKS):
                stack = random_stack(jr.key(seed), kind)
                for depth in DEPTHS:
                    rms = np.asarray(block_gradients(stack, jnp.array(depth), x))[:depth]
                    rows += [[kind, depth, seed, i + 1, f"{v:.6g}"] for i, v in enumerate(rms)]
            print(kind, f"{weights_per_block(kind)} numbers per block", flush=True)
    write_table("depth_stability/gradients.csv", ["stack", "depth", "seed", "block", "rms"], rows)


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["depth", "stability", "gradients"]
    if "depth" in wanted:
        sweep_depth()
    if "stability" in wanted:
        sweep_stability()
    if "gradients" in wanted:
        sweep_gradients()
