"""The experiments behind the chapter "Residual flows": too long for a notebook.

    python -m experiments.residual_flows.run             all, about twenty minutes on two cores
    python -m experiments.residual_flows.run fits        (or: estimators, cost)

Each writes a CSV beside this file, which names the versions, the machine and the date. The chapter
draws the files and runs one cell again.
"""

import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import gauss_flows as gf
from experiments.common import (
    divergences,
    parameters,
    seconds,
    step_seconds,
    write_table,
)

SEEDS, STEPS, BATCH, POINTS, FRESH = 5, 1000, 128, 10_000, 20_000
BLOCKS, WIDTH, LIPSCHITZ = 16, 16, 0.97
RATE = 3e-2  # of 1e-2 and 3e-2 the better for both kinds, in a trial run on the spiral
TARGETS = ("two_moons", "spiral")


def target(name):
    return getattr(gf.targets, name)().standardized()


def residual(key, dim=2, blocks=BLOCKS, **options):
    """Residual blocks that are small and many."""
    options = {"lipschitz": LIPSCHITZ, "nn_width": WIDTH} | options
    return gf.residual_flow(key, dim, layers=blocks, **options)


def coupling(key, dim=2):
    """Spline couplings with as many parameters as sixteen blocks."""
    return gf.coupling_flow(key, dim, layers=8, nn_width=16)


def train(make, name, seeds=SEEDS, steps=STEPS):
    """Flows, one a seed."""
    x = target(name).sample(jr.key(100), (POINTS,))
    keys = jr.split(jr.key(0), SEEDS)[:seeds]
    options = {"steps": steps, "batch_size": BATCH, "learning_rate": RATE}
    return gf.fit_many(keys, make, x, progress=False, **options).flow


def divergence(flows, name):
    """KL(target, flow) on fresh points, by the exact log-determinant."""
    fresh = target(name).sample(jr.key(101), (FRESH,))
    return divergences(target(name), flows, fresh)


@eqx.filter_jit
def bounds(flows, key):
    """Of each flow: the largest product of a block's norms, and the largest quotient over 10,000 pairs."""
    networks = flows.bijection.bijection.bijection[1].network
    product = jnp.prod(networks.norms(), axis=-1).max(axis=-1)
    keys = jr.split(key, 3)
    a = 2 * jr.normal(keys[0], (10_000, flows.shape[0]))
    distance = 10 ** jr.uniform(keys[1], (10_000, 1), minval=-2, maxval=1)
    b = a + distance * jr.normal(keys[2], a.shape)
    size = lambda v: jnp.sqrt((v * v).sum(axis=1))

    def quotient(network):
        run = jax.vmap(network)
        return (size(run(a) - run(b)) / size(a - b)).max()

    quotients = eqx.filter_vmap(eqx.filter_vmap(quotient))(networks)
    return product, quotients.max(axis=-1)


def sweep_fits():
    """Residual flows of 4, 8 and 16 blocks against couplings of equal parameters and of equal time."""
    rows, fields = [], ["target", "flow", "blocks", "steps", "parameters", "seed"]  # fmt: skip
    fields += ["kl", "product", "quotient", "seconds"]
    batch = jr.normal(jr.key(1), (BATCH, 2))
    slow, quick = step_seconds([residual, coupling], batch)
    equal = round(slow / quick * STEPS, -2)
    print(f"a step: residual {slow:.4f} s, coupling {quick:.4f} s", flush=True)
    for name in TARGETS:
        for flow, blocks, steps in (
            ("residual", 4, STEPS),
            ("residual", 8, STEPS),
            ("residual", BLOCKS, STEPS),
            ("coupling", 8, STEPS),
            ("coupling", 8, int(equal)),
        ):
            make = coupling
            if flow == "residual":
                make = lambda key, blocks=blocks: residual(key, blocks=blocks)
            begin = time.perf_counter()
            flows = train(make, name, steps=steps)
            took = time.perf_counter() - begin
            kl = divergence(flows, name)
            found = np.full((2, SEEDS), np.nan)
            if flow == "residual":
                found = np.asarray(bounds(flows, jr.key(4)))
            for seed in range(SEEDS):
                rows.append(
                    [name, flow, blocks, steps, parameters(make), seed, f"{kl[seed]:.4f}",
                     f"{found[0, seed]:.5f}", f"{found[1, seed]:.5f}", f"{took:.0f}"]
                )  # fmt: skip
            print(
                *rows[-1][:5],
                kl.round(3),
                found.round(3),
                f"{took:.0f} s",
                flush=True,
            )
            write_table("residual_flows/fits.csv", fields, rows)


def estimated(flows):
    """The divergence from the two moons that the flows' own estimator reports."""
    fresh = target("two_moons").sample(jr.key(101), (FRESH,))
    truth = float(target("two_moons").log_prob(fresh).mean())
    one = lambda flow: gf.estimate_log_prob(flow, fresh, jr.key(3)).mean()
    scores = eqx.filter_jit(eqx.filter_vmap(one))(flows)
    return truth - np.asarray(scores, float)


def four_blocks(method, terms):
    options = {"lipschitz": 0.9, "log_det": method, "terms": terms}
    return lambda key: residual(key, blocks=4, **options)


def sweep_estimators():
    """Four blocks, L = 0.9, on the two moons: trained by one log-determinant, scored by the exact one.

    At L = 0.97 the roulette takes a quarter of an hour: a batch waits for its longest draw.
    """
    rows = []
    for method, terms in (
        ("exact", None),
        ("hutchinson", 1),
        ("hutchinson", 10),
        ("roulette", 2),
    ):
        begin = time.perf_counter()
        flows = train(four_blocks(method, terms), "two_moons")
        took = time.perf_counter() - begin
        kl = divergence(gf.with_log_det(flows, "exact"), "two_moons")
        printed = kl if method == "exact" else estimated(flows)
        for seed, (a, b) in enumerate(zip(kl, printed, strict=True)):
            row = [method, terms or 0, seed, f"{a:.4f}", f"{b:.4f}"]
            rows.append([*row, f"{took:.0f}"])
        print(method, terms, kl.round(3), printed.round(3), f"{took:.0f} s", flush=True)  # fmt: skip
        fields = ["method", "terms", "seed", "kl", "printed", "seconds"]
        write_table("residual_flows/estimators.csv", fields, rows)


def sweep_cost():
    """Time of 256 densities and of 256 samples, in turn, at equal width."""
    rows, key = [], jr.key(0)
    density = eqx.filter_jit(lambda flow, x: flow.log_prob(x))
    estimate = eqx.filter_jit(lambda flow, x: gf.estimate_log_prob(flow, x, jr.key(2)))
    sample = eqx.filter_jit(lambda flow: flow.sample(jr.key(3), (256,)))
    for dim, width in ((2, 16), (8, 32)):
        x, same = jr.normal(jr.key(1), (256, dim)), {"nn_width": width}
        flows = {
            "residual, exact": residual(key, dim, **same),
            "residual, roulette": residual(key, dim, log_det="roulette", **same),
            "coupling": gf.coupling_flow(key, dim, layers=8, mixing="flip", **same),
            "MAF": gf.maf(key, dim, layers=8, **same),
            "IAF": gf.iaf(key, dim, layers=8, **same),
        }  # fmt: skip
        score = dict.fromkeys(flows, density)
        score["residual, roulette"] = estimate
        densities = seconds(
            [lambda f=score[name], flow=flow, x=x: f(flow, x) for name, flow in flows.items()]
        )
        # Samples need no log-determinant, but a flow of the roulette asks for its key.
        drawn = {
            name: gf.with_log_det(flow, "exact") if "residual" in name else flow
            for name, flow in flows.items()
        }  # fmt: skip
        samples = seconds([lambda flow=flow: sample(flow) for flow in drawn.values()])
        for name, a, b in zip(flows, densities, samples, strict=True):
            rows.append([dim, name, width, f"{a:.3g}", f"{b:.3g}"])
            print(rows[-1], flush=True)
        fields = ["dim", "flow", "width", "density", "sample"]
        write_table("residual_flows/cost.csv", fields, rows)


if __name__ == "__main__":
    experiments = {
        "fits": sweep_fits,
        "estimators": sweep_estimators,
        "cost": sweep_cost,
    }
    for name in sys.argv[1:] or experiments:
        begin = time.perf_counter()
        experiments[name]()
        print(f"{name}: {time.perf_counter() - begin:.0f} s")
