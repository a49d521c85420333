"""Compare warm and cold starts of two kinds of flows, for the chapter "Warm start".

    python -m experiments.warm_start.run     about ten minutes on two cores

It writes a CSV beside this file, which names the versions, the machine and the date. The chapter draws
the table and repeats one of its rows.
"""

import time
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import gauss_flows as gf
from experiments.common import mean_log_prob, write_table

TARGETS = ("gaussian_mixture", "spiral")
POINTS, FRESH, LAYERS, SEEDS, BATCH = 4000, 20_000, 8, 5, 256
STEPS = (0, 60, 180, 600)  # each is a training run of its own, with its own schedule
RATES = {  # the two best of 3e-3, 1e-2 and 3e-2 in a trial run with two seeds
    "gaussianization": (1e-2, 3e-2),
    "coupling": (3e-3, 1e-2),
}


def target(name):
    return getattr(gf.targets, name)().standardized()


@partial(jax.jit, static_argnums=0)
def points(name):
    """Return training points, fresh points, and the mean log-density of the target at the fresh points."""
    x = target(name).sample(jr.key(7), (POINTS,))
    fresh = target(name).sample(jr.key(101), (FRESH,))
    return x, fresh, target(name).log_prob(fresh).mean()


def cold(kind, key):
    """Return a flow that starts as maps near the identity between random rotations."""
    if kind == "gaussianization":
        return gf.gaussianization_flow(key, 2, layers=LAYERS)
    return gf.coupling_flow(
        key, 2, layers=LAYERS, bijector=gf.MixtureGaussianCDF(8),
        mixing="householder", conditioner=gf.conditioners.mlp(32, 2),
    )  # fmt: skip


def train(name, kind, start, steps, keys, rates):
    """Return the KL divergence from the target on fresh points, in nats, one number per key.

    A key gives the same rotations and the same batches for both starts.
    """
    x, fresh, truth = points(name)

    def make(key):
        flow = cold(kind, key)
        return gf.warm_start(flow, x) if start == "warm" else flow

    if steps == 0:
        flow_keys = jax.vmap(jr.split)(keys)[:, 0]  # as fit_many does
        flows = eqx.filter_vmap(make)(flow_keys)
    else:
        flows = gf.fit_many(
            keys, make, x, steps=steps, batch_size=BATCH, learning_rate=rates, progress=False
        ).flow  # fmt: skip
    return float(truth) - np.asarray(mean_log_prob(flows, fresh), float)


def sweep():
    rows = []
    keys = jr.split(jr.key(0), SEEDS)
    for name in TARGETS:
        for kind, rates in RATES.items():
            many = jnp.concatenate([keys] * len(rates))
            for start in ("cold", "warm"):
                for steps in STEPS:
                    began = time.time()
                    kl = train(
                        name,
                        kind,
                        start,
                        steps,
                        many,
                        np.repeat(rates, SEEDS),
                    )
                    kl = kl.reshape(len(rates), SEEDS)
                    rows += [
                        [
                            name,
                            kind,
                            start,
                            steps,
                            rate,
                            seed,
                            f"{value:.4f}",
                        ]
                        for rate, row in zip(rates, kl, strict=True)
                        for seed, value in enumerate(row)
                    ]
                    took = f"{time.time() - began:.0f} s"
                    print(
                        name,
                        kind,
                        start,
                        steps,
                        np.round(kl, 3).tolist(),
                        took,
                        flush=True,
                    )
    write_table(
        "warm_start/starts.csv",
        ["target", "kind", "start", "steps", "rate", "seed", "kl"],
        rows,
    )


if __name__ == "__main__":
    sweep()
