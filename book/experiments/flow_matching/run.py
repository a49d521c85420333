"""Run the long experiments of the chapter "Flow matching".

    python -m experiments.flow_matching.run              all, about an hour on two idle cores
    python -m experiments.flow_matching.run cost         (or: fits, straight)

Each experiment writes a table beside this file. Its first line names the versions, the machine and the date.
``cost`` measures how long a step of each method takes; run it on an idle machine. ``fits`` trains for the
number of steps that take ``BUDGET`` seconds by this table, on any machine.
"""

import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from sklearn.datasets import load_digits

import gauss_flows as gf
from experiments.common import divergences, read_table, seconds, write_table

SEEDS, BUDGET, POINTS, BATCH = 5, 10.0, 100_000, 256
EVALUATIONS = (1, 2, 4, 8, 16, 32)
METHODS = ("coupling", "independent", "paired", "likelihood")
FOLDER = "flow_matching"


def digit_classes(axes=16):
    """Return a mixture of ten Gaussians: the classes of the digits in principal axes.

    Each class has the mean and, along each principal axis, the variance of its images, so the density is
    known exactly.
    """
    images, labels = load_digits(return_X_y=True)
    centered = images - images.mean(axis=0)
    scores = centered @ np.linalg.svd(centered, full_matrices=False)[2][:axes].T
    classes = [scores[labels == digit] for digit in range(10)]
    means = np.stack([rows.mean(axis=0) for rows in classes])
    return gf.targets.gaussian_mixture(means, np.stack([rows.std(axis=0) for rows in classes]))


def targets():
    """Return the standardized target densities by name."""
    plane = ("two_moons", "spiral", "gaussian_mixture", "checkerboard")
    made = {name: getattr(gf.targets, name)() for name in plane}
    made |= {"funnel(8)": gf.targets.funnel(8), "digit classes(16)": digit_classes()}
    return {name: target.standardized() for name, target in made.items()}


def recipe(method, dim):
    """Return what makes the flow of a method, and the loss."""
    if method == "coupling":
        return lambda key: gf.coupling_flow(key, dim), None
    if method == "likelihood":  # eight steps of RK4, the exact trace in the plane, an estimate above
        log_det = "exact" if dim == 2 else "hutchinson"
        return lambda key: gf.continuous_flow(key, dim, steps=8, log_det=log_det), None
    pairs = {"independent": "independent", "paired": "optimal_transport"}[method]
    return lambda key: gf.continuous_flow(key, dim), gf.flow_matching(pairs=pairs)


def train(method, x, seed, steps):
    """Train one flow; return it with the exact trace and the default solver, and the seconds."""
    make, loss = recipe(method, x.shape[1])
    flow_key, key = jr.split(jr.fold_in(jr.key(0), seed))
    options = {"loss": loss, "steps": steps, "batch_size": BATCH, "val_fraction": 0.01}
    begin = time.perf_counter()
    flow = gf.fit(key, make(flow_key), x, **options, progress=False).flow
    took = time.perf_counter() - begin
    return scored_finely(flow) if method == "likelihood" else flow, took


def scored_finely(flow):
    """Return the flow of the same velocity with the default solver and the exact trace."""
    return gf.Transformed(
        gf.standard_normal(flow.shape),
        gf.FlowODE(jr.key(0), flow.shape, velocity=flow.bijection.velocity),
    )


def divergence(target, flow, x):
    """Return the KL divergence of one flow from a target, in nats, on points x of the target."""
    return divergences(target, jax.tree.map(lambda v: v[None] if eqx.is_array(v) else v, flow), x)[0]


def sweep_cost():
    """Time one training step, the compilation, 10,000 densities and 10,000 samples of each method."""
    rows = []
    for name in ("two_moons", "funnel(8)", "digit classes(16)"):
        target = targets()[name]
        dim = target.shape[0]
        x = target.sample(jr.key(100), (POINTS,))
        trial = {"coupling": 600, "independent": 4000, "paired": 2000, "likelihood": 20}
        first, again, flows = {}, {}, {}
        for method in METHODS:
            jax.clear_caches()  # or the later methods would find programs of the earlier ones
            first[method] = train(method, x, 0, trial[method])[1]
        for method in METHODS:
            train(method, x, 0, trial[method])
        for _ in range(3):
            for method in METHODS:
                flows[method], took = train(method, x, 1, trial[method])
                again.setdefault(method, []).append(took)

        def density(flow, points=x[:10_000]):
            run = eqx.filter_jit(lambda flow: jax.lax.map(flow.log_prob, points, batch_size=1000))
            return lambda: run(flow)

        def sampler(flow):
            run = eqx.filter_jit(lambda flow: flow.sample(jr.key(1), (10_000,)))
            return lambda: run(flow)

        two = [flows["coupling"], flows["independent"]]
        times = seconds([*map(density, two), *map(sampler, two)], rounds=3)
        for method in METHODS:
            took = float(np.median(again[method]))
            step = took / trial[method]
            which = int(method != "coupling")
            rows.append(
                [
                    dim, method, f"{step:.4g}", f"{first[method] - took:.1f}",
                    f"{times[which]:.3g}", f"{times[2 + which]:.3g}",
                ]
            )  # fmt: skip
            print(rows[-1], flush=True)
    fields = ["dim", "method", "step_seconds", "compile_seconds"]
    fields += ["density_seconds", "sample_seconds"]
    write_table(f"{FOLDER}/cost.csv", fields, rows)


def sweep_fits():
    """Train every method on every target for equal time; five seeds."""
    cost, _ = read_table(f"{FOLDER}/cost.csv")
    steps_of = {
        (int(dim), method): round(BUDGET / float(step))
        for dim, method, step in zip(cost["dim"], cost["method"], cost["step_seconds"], strict=True)
    }
    rows = []
    for name, target in targets().items():
        dim = target.shape[0]
        x = target.sample(jr.key(100), (POINTS,))
        fresh = target.sample(jr.key(101), (10_000 if dim == 2 else 4000,))
        for method in METHODS:
            steps = steps_of[dim, method]
            for seed in range(SEEDS):
                flow, took = train(method, x, seed, steps)
                kl = divergence(target, flow, fresh)
                error = 0.0
                if method != "coupling":
                    error = gf.density_error(flow, fresh[:256]).mean()
                rows.append([name, method, seed, steps, f"{kl:.4f}", f"{error:.1e}", f"{took:.1f}"])
                print(rows[-1], flush=True)
    fields = ["target", "method", "seed", "steps", "kl", "density_error", "seconds"]
    write_table(f"{FOLDER}/fits.csv", fields, rows)


@eqx.filter_jit
def straightness(velocity, z, steps=64):
    """Return how much paths from z bend: the mean squared deviation of the velocity from the chord.

    It is divided by the mean squared length of the chords, so that 0 means straight paths at constant
    speed.
    """
    v = jax.vmap(velocity, (None, 0))
    h = 1 / steps

    def step(x, t):
        a = v(t, x)
        b = v(t + h / 2, x + h / 2 * a)
        c = v(t + h / 2, x + h / 2 * b)
        d = v(t + h, x + h * c)
        return x + h / 6 * (a + 2 * b + 2 * c + d), b  # b: the velocity in the middle of the step

    end, middle = jax.lax.scan(step, z, jnp.arange(steps) * h)
    chord = end - z
    return ((middle - chord) ** 2).sum(axis=2).mean() / (chord**2).sum(axis=1).mean()


@jax.jit
def energy_distance(x, y):
    """Return an unbiased estimate of 2 E|x - y| - E|x - x'| - E|y - y'|, 0 for equal distributions."""
    n, m = len(x), len(y)
    rows = lambda a, b: jax.lax.map(lambda p: jnp.linalg.norm(p - b, axis=1).sum(), a, batch_size=500).sum()
    return 2 * rows(x, y) / (n * m) - rows(x, x) / (n * (n - 1)) - rows(y, y) / (m * (m - 1))


@eqx.filter_jit
def euler_path(velocity, z, steps):
    """Return the points z and where they are after each of so many equal Euler steps."""

    def step(x, t):
        x = x + jax.vmap(velocity, (None, 0))(t, x) / steps
        return x, x

    path = jax.lax.scan(step, z, jnp.arange(steps) / steps)[1]
    return jnp.concatenate([z[None], path])


def sweep_straight():
    """Measure paths and samples of fields with independent, paired and reflowed pairs; five seeds."""
    rows = []
    for name in ("two_moons", "gaussian_mixture"):
        target = targets()[name]
        x = target.sample(jr.key(100), (POINTS,))
        fresh, z = target.sample(jr.key(101), (10_000,)), jr.normal(jr.key(102), (10_000, 2))
        for seed in range(SEEDS):
            flows = {method: train(method, x, seed, 10_000)[0] for method in ("independent", "paired")}
            again = jr.fold_in(jr.key(103), seed)
            options = {"steps": 10_000, "n_pairs": 30_000, "batch_size": BATCH, "progress": False}
            flows["reflowed"] = gf.reflow(again, flows["independent"], **options).flow
            for field, flow in flows.items():
                bend = straightness(flow.bijection.velocity, z)
                kl = divergence(target, flow, fresh[:4000])
                ends = eqx.filter_jit(jax.vmap(flow.bijection.transform))(z)
                which = [name, field, seed, f"{bend:.3g}", f"{kl:.4f}"]
                for steps in EVALUATIONS:
                    made = euler_path(flow.bijection.velocity, z, steps)[-1]
                    away = jnp.linalg.norm(made - ends, axis=1).mean()
                    distance = energy_distance(made, fresh)
                    rows.append([*which, steps, f"{away:.3g}", f"{distance:.3g}"])
                floor = energy_distance(ends, fresh)
                rows.append([*which, "exact", "0", f"{floor:.3g}"])
                print(rows[-1], flush=True)
    fields = ["target", "field", "seed", "straightness", "kl", "evaluations", "end_error", "energy_distance"]
    write_table(f"{FOLDER}/straightness.csv", fields, rows)


if __name__ == "__main__":
    experiments = {"cost": sweep_cost, "fits": sweep_fits, "straight": sweep_straight}
    for name in sys.argv[1:] or experiments:
        begin = time.perf_counter()
        experiments[name]()
        print(f"{name}: {time.perf_counter() - begin:.0f} s")
