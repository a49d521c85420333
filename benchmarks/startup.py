"""What a user waits for: whole processes, from `python script.py` to a trained flow and its samples.

    make bench BENCHMARKS=benchmarks/startup.py    (pip install zuko)

Each measurement is a process of its own, with nothing compiled before and no compilation cache: it imports
the library, makes a coupling flow of 4 spline layers (8 bins, conditioners of 2 hidden layers of 64), trains
it for 1,000 Adam steps of 256 points, draws 1,000 samples, and ends. The data are 5,000 points in 2 or 16
dimensions. The libraries take turns, several rounds; the first table shows medians, and ratios to ours.

The rivals train as their documentation shows: flowjax by `fit_to_data`, for as many epochs as make at least
so many steps, Zuko by a loop in Python. `gf.fit` and `fit_to_data` judge on held-out points besides.

The second table divides our own process: importing, making the flow, tracing (with lowering) and compiling
in `gf.fit`, its steps, the samples, and the rest, which is Python's own start and end.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from functools import partial

DIMS, POINTS, BATCH, SAMPLES = (2, 16), 5000, 256, 1000
LAYERS, WIDTH, BINS, INTERVAL = 4, 64, 8, 4.0
LIBRARIES = ("gauss_flows", "flowjax", "zuko")
PARTS = ("import", "make", "trace", "compile", "steps", "sample", "rest")


def data(dim):
    """Correlated normal points whose odd columns are bent by the even ones, by NumPy alone."""
    import numpy as np

    x = np.random.default_rng(0).normal(size=(POINTS, dim))
    x[:, 1::2] = 0.5 * x[:, 1::2] + x[:, ::2] ** 2 / 2 - 0.5
    return x.astype(np.float32)


def covered(spans, start, end):
    """The time from start to end that lies in at least one of the spans: a trace can hold others."""
    total, reached = 0.0, start
    for a, b in sorted(spans):
        a, b = max(a, reached), min(b, end)
        total, reached = total + max(b - a, 0.0), max(reached, b)
    return total


def run_gauss_flows(dim, steps):
    start = time.perf_counter()
    import jax
    import jax.random as jr

    import gauss_flows as gf

    imported = time.perf_counter()
    spans = {"trace": [], "compile": []}

    def listen(event, seconds, **_):
        if event.startswith("/jax/core/compile/"):
            end = time.perf_counter()
            spans["compile" if "backend_compile" in event else "trace"].append((end - seconds, end))

    jax.monitoring.register_event_duration_secs_listener(listen)
    x = data(dim)
    flow = gf.coupling_flow(
        jr.key(0), dim, layers=LAYERS, bijector=gf.RQSpline(BINS, INTERVAL), nn_width=WIDTH, nn_depth=2
    )
    jax.block_until_ready(jax.tree.leaves(flow))
    made = time.perf_counter()
    flow = gf.fit(jr.key(1), flow, x, steps=steps, batch_size=BATCH, progress=False).flow
    trained = time.perf_counter()
    flow.sample(jr.key(2), (SAMPLES,)).block_until_ready()
    sampled = time.perf_counter()
    compilation = covered(spans["compile"], made, trained)
    trace = covered(spans["trace"] + spans["compile"], made, trained) - compilation
    return {
        "import": imported - start,
        "make": made - imported,
        "trace": trace,
        "compile": compilation,
        "steps": trained - made - trace - compilation,
        "sample": sampled - trained,
    }


def run_flowjax(dim, steps):
    import jax.numpy as jnp
    import jax.random as jr
    from flowjax.bijections import RationalQuadraticSpline
    from flowjax.distributions import Normal
    from flowjax.flows import coupling_flow
    from flowjax.train import fit_to_data

    spline = RationalQuadraticSpline(knots=BINS - 1, interval=INTERVAL)  # inner knots: 7 make 8 bins
    flow = coupling_flow(
        jr.key(0), base_dist=Normal(jnp.zeros(dim)), transformer=spline, flow_layers=LAYERS, nn_width=WIDTH,
        nn_depth=2, invert=True,
    )  # fmt: skip
    epochs = -(-steps // ((POINTS - round(0.1 * POINTS)) // BATCH))
    flow, _ = fit_to_data(
        jr.key(1), flow, jnp.asarray(data(dim)), learning_rate=1e-3, max_epochs=epochs, max_patience=epochs,
        batch_size=BATCH, show_progress=False,
    )  # fmt: skip
    flow.sample(jr.key(2), (SAMPLES,)).block_until_ready()


def run_zuko(dim, steps):
    import torch
    import zuko

    torch.manual_seed(0)
    x = torch.from_numpy(data(dim))
    flow = zuko.flows.RealNVP(
        dim,
        transforms=LAYERS,
        hidden_features=(WIDTH, WIDTH),
        univariate=partial(zuko.transforms.MonotonicRQSTransform, bound=INTERVAL),
        shapes=[(BINS,), (BINS,), (BINS - 1,)],
    )
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    for _ in range(steps):
        loss = -flow().log_prob(x[torch.randint(POINTS, (BATCH,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        flow().sample((SAMPLES,))


def measure(library, dim, steps):
    """Seconds of one process from its start to its end, and what it says of its parts."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, __file__, "--one", library, "--dim", str(dim), "--steps", str(steps)]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{library} in dimension {dim} failed:\n{done.stderr}")
    parts = json.loads(done.stdout.splitlines()[-1])
    if parts is not None:
        parts["rest"] = seconds - sum(parts.values())  # Python's own start and end
    return seconds, parts


def compare(dim, libraries, rounds, steps):
    times, parts = {library: [] for library in libraries}, []
    for _ in range(rounds):
        for library in libraries:
            seconds, found = measure(library, dim, steps)
            times[library].append(seconds)
            parts += [] if found is None else [found]
    median = {library: statistics.median(values) for library, values in times.items()}
    own = median["gauss_flows"]
    row = "".join(
        f"{f'{median[name]:.1f} s ({median[name] / own:.2f})' if name in median else 'not installed':>18}"
        for name in LIBRARIES
    )
    print(f"{dim:>3}  {row}", flush=True)
    return {part: statistics.median(found[part] for found in parts) for part in PARTS}


def main():
    parser = argparse.ArgumentParser(description="Whole processes, from start to samples.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--one", choices=LIBRARIES, help="run one library in this process")
    parser.add_argument("--dim", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(globals()[f"run_{arguments.one}"](arguments.dim, arguments.steps)))
        return
    there = [name for name in LIBRARIES if importlib.util.find_spec(name) is not None]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for name in ("jax", "flowjax", "zuko", "torch"):
        found = importlib.util.find_spec(name) is not None
        print(f"{name} {importlib.metadata.version(name) if found else 'not installed'}")
    print(f"{arguments.steps} steps of {BATCH}, {arguments.rounds} rounds; in brackets, over ours")
    print("dim  " + "".join(f"{name:>18}" for name in LIBRARIES), flush=True)
    breakdown = {dim: compare(dim, there, arguments.rounds, arguments.steps) for dim in DIMS}
    print("our process, seconds:\ndim  " + "".join(f"{part:>9}" for part in PARTS))
    for dim, parts in breakdown.items():
        print(f"{dim:>3}  " + "".join(f"{parts[part]:>9.2f}" for part in PARTS))


if __name__ == "__main__":
    main()
