"""The experiments behind the chapter "Residual flows" that take too long for a notebook.

    python -m experiments.residual_flows.run             all, about twenty minutes on two cores
    python -m experiments.residual_flows.run fits        (or: truncation, estimators, cost)

Each experiment writes a CSV file beside this one. Its first line names the versions, the machine and the
date. The chapter draws the tables and repeats one of the runs.
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
RATE = 3e-2  # better than 1e-2 for both kinds of flow, in a trial run on the spiral
TARGETS = ("two_moons", "spiral")


def target(name):
    """Return the target density of that name, with mean 0 and variance 1 in each coordinate."""
    return getattr(gf.targets, name)().standardized()


def residual(key, dim=2, blocks=BLOCKS, **options):
    """Return a flow of small residual blocks."""
    options = {"lipschitz": LIPSCHITZ, "nn_width": WIDTH} | options
    return gf.residual_flow(key, dim, layers=blocks, **options)


def coupling(key, dim=2):
    """Return a flow of spline couplings with about as many parameters as sixteen residual blocks."""
    return gf.coupling_flow(key, dim, layers=8, nn_width=16)


def train(make, name, seeds=SEEDS, steps=STEPS):
    """Train one flow per seed, and return them stacked along the first axis."""
    x = target(name).sample(jr.key(100), (POINTS,))
    keys = jr.split(jr.key(0), SEEDS)[:seeds]
    options = {"steps": steps, "batch_size": BATCH, "learning_rate": RATE}
    return gf.fit_many(keys, make, x, progress=False, **options).flow


def divergence(flows, name):
    """Return KL(target || flow) of each flow on fresh points, with the exact log-determinant."""
    fresh = target(name).sample(jr.key(101), (FRESH,))
    return divergences(target(name), flows, fresh)


@eqx.filter_jit
def bounds(flows, key):
    """Return each flow's largest product of a block's norms, and its largest quotient over 10,000 pairs."""
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
    """Compare residual flows of 4, 8 and 16 blocks with couplings, at equal steps and at equal time."""
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


@eqx.filter_jit
def slopes(flows, x):
    """Return the Jacobian of g in each block at each point; shape (flows, n, blocks, D, D)."""

    def of_flow(layers):
        arrays, static = eqx.partition(layers, eqx.is_array)

        def step(h, arrays):
            actnorm, block = eqx.combine(arrays, static)
            h = actnorm.transform(h)
            return block.transform(h), jax.jacfwd(block.network)(h)

        return jax.vmap(lambda x: jax.lax.scan(step, x, arrays)[1])(x)

    return eqx.filter_vmap(of_flow)(flows.bijection.bijection.bijection)


def truncation(flows, name, points=2000):
    """Return for each flow how steep g is at points of the target, and what a truncated series leaves out.

    The five numbers are the median and the maximum of the norm of the Jacobian of g, over points and blocks,
    and the mean error of the log-determinant after 1, 4 and 10 terms of its series, in nats.
    """
    fresh = target(name).sample(jr.key(101), (points,))
    J = np.asarray(slopes(flows, fresh), float)
    norms = np.linalg.norm(J, 2, axis=(-2, -1))
    exact = np.linalg.slogdet(np.eye(J.shape[-1]) + J)[1].sum(axis=-1)
    found = [np.median(norms, axis=(1, 2)), norms.max(axis=(1, 2))]
    power, total = J, 0
    for k in range(1, 11):
        trace = np.trace(power, axis1=-2, axis2=-1).sum(axis=-1)
        total = total + (-1) ** (k + 1) * trace / k
        power = power @ J
        if k in (1, 4, 10):
            found.append((total - exact).mean(axis=1))
    return np.array(found).T


def sweep_truncation():
    """Measure the truncated series in the flows of four blocks on the two moons, after training."""
    flows = train(lambda key: residual(key, blocks=4), "two_moons")
    rows = [
        [seed, *(f"{value:.4f}" for value in row)] for seed, row in enumerate(truncation(flows, "two_moons"))
    ]
    fields = ["seed", "median_norm", "largest_norm", "error_1", "error_4", "error_10"]  # fmt: skip
    write_table("residual_flows/truncation.csv", fields, rows)


def estimated(flows):
    """Return the divergence from the two moons that each flow's own estimator reports."""
    fresh = target("two_moons").sample(jr.key(101), (FRESH,))
    truth = float(target("two_moons").log_prob(fresh).mean())
    one = lambda flow: gf.estimate_log_prob(flow, fresh, jr.key(3)).mean()
    scores = eqx.filter_jit(eqx.filter_vmap(one))(flows)
    return truth - np.asarray(scores, float)


def four_blocks(method, terms):
    options = {"lipschitz": 0.9, "log_det": method, "terms": terms}
    return lambda key: residual(key, blocks=4, **options)


def sweep_estimators():
    """Train four blocks with Lipschitz bound 0.9 on the two moons with each log-determinant.

    The exact log-determinant scores them all. With the bound 0.97 the roulette takes a quarter of an hour,
    because a batch takes as long as its longest draw.
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
    """Measure the time of 256 densities and of 256 samples at equal width."""
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
        # Samples need no log-determinant, but a flow with the roulette would require a key.
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
        "truncation": sweep_truncation,
        "estimators": sweep_estimators,
        "cost": sweep_cost,
    }
    for name in sys.argv[1:] or experiments:
        begin = time.perf_counter()
        experiments[name]()
        print(f"{name}: {time.perf_counter() - begin:.0f} s")
