"""Run the long experiments of the chapter "MAF and IAF".

    python -m experiments.maf_iaf.run              all, about half an hour on two cores
    python -m experiments.maf_iaf.run cost         (or: fits, dial, sampling, distill)

Each experiment writes a table beside this file. Its first line names the versions, the machine and the date.
The chapter shows the tables and repeats one of the runs.
"""

import sys
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
from experiments.common import (
    divergences,
    parameters,
    seconds,
    write_table,
)
from gauss_flows.targets import Target

SEEDS, STEPS, BATCH, POINTS, FRESH = 5, 1200, 512, 10_000, 20_000
WIDTHS = {2: 32, 4: 32, 8: 32, 16: 32, 32: 64, 64: 128, 128: 256, 256: 512}


def targets():
    """Return the standardized target densities by name."""
    plane = {
        name: getattr(gf.targets, name)().standardized()
        for name in (
            "two_moons",
            "spiral",
            "rings",
            "checkerboard",
            "gaussian_mixture",
        )
    }
    return plane | {"funnel(8)": gf.targets.funnel(8).standardized()}


def bijector(dim):
    """Return a spline in the plane, and for the funnel, with its wide tails, an affine map."""
    return gf.RQSpline() if dim == 2 else gf.bijectors.exp_affine(5.0)


def coupling(key, dim):
    return gf.coupling_flow(key, dim, layers=8, mixing="flip", bijector=bijector(dim))


def maf(key, dim, width):
    return gf.maf(key, dim, nn_width=width, bijector=bijector(dim))


def matched_width(dim):
    """Return the width that gives five autoregressive layers the parameters of eight couplings."""
    aim = parameters(lambda key: coupling(key, dim))
    gap = lambda width: abs(parameters(lambda key: maf(key, dim, width)) - aim)
    return min(range(40, 140), key=gap)


def chain(dim, noise=0.3):
    """Return a target that one affine autoregressive layer represents exactly in the natural order.

    x_1 is standard normal, and x_i = 1.5 cos(1.5 x_{i-1}) + noise e_i with standard normal e_i.
    """

    def log_density(x):
        normal = lambda e: (-0.5 * e * e - 0.5 * jnp.log(2 * jnp.pi)).sum()
        rest = (x[1:] - 1.5 * jnp.cos(1.5 * x[:-1])) / noise
        return normal(x[:1]) + normal(rest) - (dim - 1) * jnp.log(noise)

    def sampler(key):
        e = jr.normal(key, (dim,))
        step = lambda x, e: (
            (new := 1.5 * jnp.cos(1.5 * x) + noise * e),
            new,
        )
        return jnp.concatenate([e[:1], jax.lax.scan(step, e[0], e[1:])[1]])

    entropy = 0.5 * dim * np.log(2 * np.pi * np.e) + (dim - 1) * np.log(noise)
    return Target((dim,), log_density, sampler, (0.0, 1.0), lambda: entropy)


def train(make, target, seeds=SEEDS, **options):
    """Train one flow per seed; return the flows, the KL of each on fresh points, and the seconds."""
    x = target.sample(jr.key(100), (POINTS,))
    fresh = target.sample(jr.key(101), (FRESH,))
    keys = jr.split(jr.key(0), SEEDS)[:seeds]
    begin = time.perf_counter()
    options = {"steps": STEPS, "batch_size": BATCH} | options | {"progress": False}
    flows = gf.fit_many(keys, make, x, **options).flow
    took = time.perf_counter() - begin
    return flows, divergences(target, flows, fresh), took


def sweep_cost():
    """Time one evaluation and the three inverses of an affine layer for several D, in batches of 256."""
    rows = []
    for dim, width in WIDTHS.items():
        x = jr.normal(jr.key(1), (256, dim))

        def layer(inverse, dim=dim, width=width):
            return gf.MaskedAutoregressive(
                jr.key(0), shape=(dim,), bijector=gf.Affine(), nn_width=width, inverse=inverse
            )  # fmt: skip

        def run(method, layer, v):
            arrays, rest = eqx.partition(layer, eqx.is_array)
            f = jax.jit(
                jax.vmap(
                    lambda a, v: getattr(eqx.combine(a, rest), method)(v),
                    (None, 0),
                )
            )
            return lambda: f(arrays, v)

        made = {name: layer(name) for name in ("incremental", "jacobi", "sequential")}
        forward = run("transform_and_log_det", made["jacobi"], x)
        z = forward()[0]
        inverses = [run("inverse_and_log_det", one, z) for one in made.values()]
        quick, *slow = seconds([forward, *inverses])
        sweeps = run("inverse_and_sweeps", made["jacobi"], z)()[1]
        error = max(float(jnp.abs(f()[0] - x).max()) for f in inverses)
        rows.append(
            [
                dim,
                width,
                f"{quick:.3g}",
                *(f"{t / quick:.2f}" for t in slow),
                int(sweeps.max()),
                f"{error:.0e}",
            ]
        )
        print(rows[-1], flush=True)
    fields = ["dim", "width", "pass_seconds", *made, "sweeps", "error"]
    write_table("maf_iaf/inverse_cost.csv", fields, rows)


def sweep_fits():
    """Train a MAF and a coupling flow with as many parameters on every target."""
    rows = []
    for name, target in targets().items():
        dim = target.shape[0]
        width = matched_width(dim)
        makers = {
            "coupling": lambda key, dim=dim: coupling(key, dim),
            "MAF": lambda key, dim=dim, width=width: maf(key, dim, width),
        }
        for flow, make in makers.items():
            _, kl, took = train(make, target)
            count = parameters(make)
            used = width if flow == "MAF" else 64
            rows += [[name, flow, used, count, seed, f"{v:.3f}", f"{took:.0f}"] for seed, v in enumerate(kl)]
            print(name, flow, count, kl.round(3), f"{took:.0f} s", flush=True)
    write_table(
        "maf_iaf/fits.csv",
        ["target", "flow", "width", "parameters", "seed", "kl", "seconds"],
        rows,
    )


def one_layer(key, dim, passes):
    """Return a flow of one affine autoregressive layer with the given number of ranks."""
    layer = gf.MaskedAutoregressive(
        key,
        shape=(dim,),
        bijector=gf.Affine(),
        passes=passes,
        conditioner=gf.conditioners.made(64, 2, activation=jax.nn.silu, zero_last=True),
    )
    return Transformed(non_trainable(Normal(jnp.zeros(dim))), Invert(layer))


def sweep_dial():
    """Train one affine layer on the chain of eight coordinates, with 2 (a coupling) to 8 ranks."""
    target, rows = chain(8), []
    for passes in (2, 3, 4, 6, 8):
        make = lambda key, passes=passes: one_layer(key, 8, passes)
        _, kl, took = train(make, target)
        rows += [[passes, seed, f"{v:.4f}"] for seed, v in enumerate(kl)]
        print(passes, kl.round(3), f"{took:.0f} s", flush=True)
    write_table("maf_iaf/passes.csv", ["passes", "seed", "kl"], rows)


def sweep_sampling():
    """Time 1,000 samples from five spline layers."""
    rows = []
    for dim, width in ((2, 64), (64, 128)):

        def sampler(make, dim=dim, width=width, **options):
            flow = make(jr.key(0), dim, nn_width=width, **options)
            draw = eqx.filter_jit(lambda flow: flow.sample(jr.key(1), (1000,)))
            return lambda: draw(flow)

        times = seconds(
            [
                sampler(gf.maf, inverse="sequential"),
                sampler(gf.maf),
                sampler(gf.iaf),
            ]
        )
        rows.append([dim, *(f"{t:.3g}" for t in times)])
        print(rows[-1], flush=True)
    write_table(
        "maf_iaf/sampling_cost.csv",
        ["dim", "sequential", "incremental", "iaf"],
        rows,
    )


def kl_between(p, q):
    """Return KL(p || q), estimated on 20,000 samples of p."""
    x = eqx.filter_jit(lambda f: f.sample(jr.key(11), (FRESH,)))(p)
    ratio = eqx.filter_jit(lambda p, q, x: (p.log_prob(x) - q.log_prob(x)).mean())
    return float(ratio(p, q, x))


def sweep_distill():
    """Train a MAF on the two moons and distill it into an IAF, with either loss."""
    target, rows = targets()["two_moons"], []
    x = target.sample(jr.key(100), (POINTS,))
    for seed in range(3):
        keys = jr.split(jr.fold_in(jr.key(20), seed), 4)
        options = {"steps": 1500, "batch_size": BATCH, "progress": False}
        teacher = gf.fit(keys[0], maf(keys[1], 2, 64), x, **options).flow
        new = gf.iaf(keys[2], 2, nn_width=64)
        for loss in ("reverse_kl", "output"):
            student = gf.distill(keys[3], teacher, new, loss=loss, **options).flow
            pairs = (teacher, new), (new, teacher), (teacher, student), (student, teacher)  # fmt: skip
            rows.append(
                [
                    seed,
                    loss,
                    *(f"{kl_between(*pair):.4f}" for pair in pairs),
                ]
            )
            print(rows[-1], flush=True)
    fields = ["seed", "loss", "before_ts", "before_st", "after_ts", "after_st"]  # fmt: skip
    write_table("maf_iaf/distillation.csv", fields, rows)


if __name__ == "__main__":
    experiments = {
        "distill": sweep_distill,
        "cost": sweep_cost,
        "fits": sweep_fits,
        "dial": sweep_dial,
        "sampling": sweep_sampling,
    }
    for name in sys.argv[1:] or experiments:
        begin = time.perf_counter()
        experiments[name]()
        print(f"{name}: {time.perf_counter() - begin:.0f} s")
