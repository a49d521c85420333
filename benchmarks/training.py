"""Training: `gf.fit` against a loop in Python, its compile time by depth, and flowjax's `fit_to_data`.

    make bench BENCHMARKS=benchmarks/training.py

1. End to end, compilation included: 16 spline layers on 3,000 points of the spiral, 1,200 steps of 512,
   against a jitted step over the same 16 layers in a `Chain`, dispatched step by step from Python
   with the same optimizer and batches drawn on the device, and no validation.
2. From nothing compiled to the end of `gf.fit` with one step, 16 layers over 2.
3. Steps per second with everything compiled, the same flow of 8 layers, the same optimizer and the same
   number of optimizer steps. Both validate as they always do: flowjax after each epoch, `gf.fit` after
   each chunk of steps.

Prints ratios: absolute times differ from machine to machine.
"""

import platform
import statistics
import time
from functools import partial

import equinox as eqx
import jax
import jax.random as jr
import optax
from flowjax.bijections import Chain, Invert
from flowjax.distributions import Transformed
from flowjax.train import fit_to_data
from flowjax.train.losses import MaximumLikelihoodLoss

import gauss_flows as gf
from gauss_flows.bijection import partition

STEPS, BATCH, POINTS = 1200, 512, 3000


def seconds(f):
    start = time.perf_counter()
    jax.block_until_ready(f())
    return time.perf_counter() - start


def spline_flow(layers):
    return gf.coupling_flow(jr.key(0), 2, layers=layers, bijector=gf.RQSpline(n_bins=8, interval=4.0))


def adam(steps):
    """What `gf.fit` does by default."""
    schedule = optax.cosine_onecycle_schedule(max(steps, 2), 1e-2, final_div_factor=0.08)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def fit(flow, x, steps, batch_size, optimizer=None):
    return gf.fit(
        jr.key(1), flow, x, steps=steps, batch_size=batch_size, optimizer=optimizer, progress=False
    ).train_loss


def unrolled(flow):
    """The same layers, one after the other in a Chain."""
    stacked = flow.bijection.bijection.bijection
    arrays, rest = eqx.partition(stacked, eqx.is_array)
    layers = len(jax.tree.leaves(arrays)[0])
    parts = [eqx.combine(jax.tree.map(lambda a, i=i: a[i], arrays), rest) for i in range(layers)]
    return Transformed(flow.base_dist, Invert(Chain(parts)))


def python_loop(flow, x, steps, batch_size):
    params, static = partition(flow)
    optimizer = adam(steps)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, x, key):
        batch = x[jr.randint(key, (batch_size,), 0, len(x))]
        loss = lambda params: -eqx.combine(params, static).log_prob(batch).mean()
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    params = jax.tree.map(lambda a: a.copy(), params)  # the step may overwrite them
    opt_state = optimizer.init(params)
    losses = []
    for key in jr.split(jr.key(1), steps):
        params, opt_state, loss = step(params, opt_state, x, key)
        losses.append(loss)
    return losses


def end_to_end(x):
    flow = spline_flow(16)
    own = seconds(lambda: fit(flow, x, STEPS, BATCH))
    rival = seconds(lambda: python_loop(unrolled(flow), x, STEPS, BATCH))
    print(f"end to end, 16 layers, {STEPS} steps of {BATCH}: python loop / gf.fit  {rival / own:.2f}")
    print(f"  gf.fit {own:.1f} s, python loop {rival:.1f} s", flush=True)


def compilation(x):
    times = {2: [], 16: []}
    for _ in range(3):
        for layers, record in times.items():
            flow = spline_flow(layers)
            jax.clear_caches()
            record.append(seconds(lambda flow=flow: fit(flow, x, 1, BATCH)))
    shallow, deep = (statistics.median(record) for record in times.values())
    print(f"compile time of gf.fit: 16 layers / 2 layers  {deep / shallow:.2f}")
    print(f"  2 layers {shallow:.1f} s, 16 layers {deep:.1f} s", flush=True)


def steps_per_second(x, batch_size, epochs):
    flow, loss = spline_flow(8), MaximumLikelihoodLoss()
    steps = epochs * ((len(x) - round(0.1 * len(x))) // batch_size)
    optimizer = adam(steps)  # one object, so that nothing compiles twice
    fits = (
        lambda: fit(flow, x, steps, batch_size, optimizer),
        lambda: fit_to_data(
            jr.key(1), flow, x, optimizer=optimizer, loss_fn=loss, max_epochs=epochs, max_patience=epochs,
            batch_size=batch_size, show_progress=False,
        )[1]["train"],
    )  # fmt: skip
    times = [[], []]
    for round_ in range(4):
        for f, record in zip(fits, times, strict=True):
            taken = seconds(f)
            if round_:
                record.append(taken)
    own, rival = (statistics.median(record) for record in times)
    print(
        f"{steps} warm steps of {batch_size}: flowjax / gf.fit  {rival / own:.2f}"
        f"  ({steps / own:.0f} steps/s against {steps / rival:.0f})",
        flush=True,
    )


def main():
    print(f"jax {jax.__version__}, {platform.machine()}, {jax.local_device_count()} CPU device")
    x = gf.targets.spiral().sample(jr.key(3), (POINTS,))
    for batch_size, epochs in ((100, 12), (512, 20)):
        steps_per_second(x, batch_size, epochs)
    compilation(x)
    end_to_end(x)


if __name__ == "__main__":
    main()
