"""What a plain call costs: `flow.log_prob(x)` and `flow.sample(key, (100,))` as users write them.

    make bench BENCHMARKS=benchmarks/plain.py

Each row is one flow and 100 points in 2 dimensions: the milliseconds of the call under `eqx.filter_jit`,
those of the plain call, and their ratio, each the best of 30 calls taken in turn; then the memory that 20
more plain calls have kept. The last rows hold our layers in flowjax's own `Transformed`, whose base density
costs some milliseconds by itself (first row), and a flow that is flowjax's throughout.
"""

import time
from pathlib import Path

import equinox as eqx
import flowjax.bijections as fb
import flowjax.flows
import jax
import jax.numpy as jnp
import jax.random as jr
from flowjax.distributions import Normal, Transformed

import gauss_flows as gf

KEYS = jr.split(jr.key(0), 8)
LAYERS = [gf.AffineCoupling(key, (2,)) for key in KEYS]
STACK = gf.Scan(eqx.filter_vmap(lambda key: gf.AffineCoupling(key, (2,)))(KEYS))
BASE = Normal(jnp.zeros(2))
FLOWS = {
    "flowjax's Normal alone": BASE,
    "coupling_flow": gf.coupling_flow(jr.key(0), 2),
    "maf": gf.maf(jr.key(0), 2),
    "iaf": gf.iaf(jr.key(0), 2),
    "residual_flow, 4 blocks": gf.residual_flow(jr.key(0), 2, layers=4),
    "gaussianization_flow": gf.gaussianization_flow(jr.key(0), 2),
    "Scan in gf.Transformed": gf.Transformed(BASE, fb.Invert(STACK)),
    "Chain in gf.Transformed": gf.Transformed(BASE, fb.Invert(fb.Chain(LAYERS))),
    "Scan in flowjax's Transformed": Transformed(BASE, fb.Invert(STACK)),
    "Chain in flowjax's Transformed": Transformed(BASE, fb.Invert(fb.Chain(LAYERS))),
    "flowjax's coupling_flow": flowjax.flows.coupling_flow(jr.key(0), base_dist=BASE),
}


def kilobytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def in_turn(calls, rounds=30):
    """The best time of each call in milliseconds, after one untimed call of each."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds + 1):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            jax.block_until_ready(call())
            best[i] = min(best[i], 1e3 * (time.perf_counter() - start))
    return best


def main():
    x, key = jr.normal(jr.key(1), (100, 2)), jr.key(2)
    log_prob = eqx.filter_jit(lambda flow, x: flow.log_prob(x))
    sample = eqx.filter_jit(lambda flow, key: flow.sample(key, (100,)))
    print(f"jax {jax.__version__}, gauss_flows {gf.__version__}")
    print(f"{'':32} {'log_prob':>24} {'sample':>24} {'20 calls keep':>14}")
    for name, flow in FLOWS.items():
        rounds = 5 if name == "flowjax's coupling_flow" else 30
        a, b = in_turn([lambda f=flow: log_prob(f, x), lambda f=flow: f.log_prob(x)], rounds)
        c, d = in_turn([lambda f=flow: sample(f, key), lambda f=flow: f.sample(key, (100,))], rounds)
        before = kilobytes()
        for _ in range(20):
            flow.log_prob(x)
        kept = kilobytes() - before
        print(
            f"{name:32} {a:7.2f} {b:9.2f} {b / a:6.1f} {c:7.2f} {d:9.2f} {d / c:6.1f} {kept:11,} kB",
            flush=True,
        )


if __name__ == "__main__":
    main()
