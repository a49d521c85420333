"""Continuous flows: the time of log p and of a training step by likelihood, against diffrax and Zuko.

    make bench BENCHMARKS=benchmarks/continuous.py    (pip install zuko for the last rival)

One velocity network (width 64, three hidden layers) in two dimensions, trained by flow matching on two
moons. Every solver is set to the least work at which log p of 256 points is right to a thousandth of a nat
on average, measured against 512 steps of RK4. The rivals are diffrax's Dopri5 and Tsit5 with a step size
controller, written as its documentation does (the trace beside the state, one solve per point under vmap),
and Zuko's continuous flow with a network of the same size. Best of 20 calls in turn, compiled.
"""

import time

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

import gauss_flows as gf
from experiments.timing import seconds
from gauss_flows.bijection import partition

N, LARGEST = 256, 1e-3


def in_milliseconds(calls):
    """Return the best time of each call by its name."""
    best = seconds(list(calls.values()), rounds=20, take=min)
    return {name: 1e3 * took for name, took in zip(calls, best, strict=True)}


def by_diffrax(solver, tolerance):
    """Log p of one point, as diffrax's documentation of continuous flows writes it."""

    def log_prob(velocity: PyTree, x):
        def field(t, state, velocity):
            value, pull = jax.vjp(lambda x: velocity(t, x, None), state[0])
            (rows,) = jax.vmap(pull)(jnp.eye(len(x), dtype=x.dtype))
            return value, jnp.trace(rows)

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field), solver(), 1.0, 0.0, None, (x, jnp.zeros((), x.dtype)), args=velocity,
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance), max_steps=4096,
        )  # fmt: skip
        z, change = (a[0] for a in solution.ys)
        return change - 0.5 * (z @ z) - len(x) * 0.5 * jnp.log(2 * jnp.pi)

    return lambda velocity, x: jax.vmap(lambda x: log_prob(velocity, x))(x)


def by_steps(method, steps):
    def log_prob(velocity, x):
        ode = gf.FlowODE(jr.key(0), (2,), velocity=velocity, solver=method, steps=steps)
        return gf.Transformed(gf.standard_normal(2), ode).log_prob(x)

    return log_prob


def main():
    target = gf.targets.two_moons()
    flow = gf.continuous_flow(jr.key(0), 2)
    x = target.sample(jr.key(1), (5000,))
    options = {"loss": gf.flow_matching(), "steps": 5000, "progress": False}
    velocity = gf.fit(jr.key(2), flow, x, **options).flow.bijection.velocity
    x = target.sample(jr.key(3), (N,))
    truth = np.asarray(by_steps("rk4", 512)(velocity, x))

    def error(log_prob):
        return float(np.abs(np.asarray(eqx.filter_jit(log_prob)(velocity, x)) - truth).mean())

    chosen = {}
    for name, makes in {
        "gauss_flows rk4": [by_steps("rk4", n) for n in (4, 6, 8, 12, 16, 24, 32)],
        "gauss_flows heun": [by_steps("heun", n) for n in (8, 16, 32, 64, 128)],
        "diffrax Dopri5": [by_diffrax(diffrax.Dopri5, 10.0**-k) for k in (2, 3, 4, 5, 6)],
        "diffrax Tsit5": [by_diffrax(diffrax.Tsit5, 10.0**-k) for k in (2, 3, 4, 5, 6)],
    }.items():
        for make in makes:
            if (reached := error(make)) <= LARGEST:
                chosen[name] = make
                print(f"{name:18} mean error of log p {reached:.1e} nats")
                break
        else:
            print(f"{name:18} never reaches {LARGEST} nats")
    params, static = partition(velocity)

    def step(log_prob):
        loss = lambda params: -log_prob(eqx.combine(params, static), x).mean()
        compiled = eqx.filter_jit(jax.value_and_grad(loss))
        return lambda: compiled(params)

    density = {name: eqx.filter_jit(log_prob) for name, log_prob in chosen.items()}
    times = in_milliseconds({name: lambda f=f: f(velocity, x) for name, f in density.items()})
    steps = in_milliseconds({name: step(log_prob) for name, log_prob in chosen.items()})
    ours_density, ours_step = times["gauss_flows rk4"], steps["gauss_flows rk4"]
    print("                   log p [ms]  / ours   gradient [ms]  / ours")
    for name in chosen:
        print(f"{name:18} {times[name]:9.1f} {times[name] / ours_density:8.2f}", end="")
        print(f" {steps[name]:14.1f} {steps[name] / ours_step:8.2f}")
    try:
        by_zuko(x, ours_density, ours_step)
    except ImportError:
        print("zuko is not installed")


def by_zuko(x, ours_density, ours_step):
    """Zuko's continuous flow with its own solver, whose accuracy is set by its default tolerances."""
    import torch
    import zuko

    torch.set_num_threads(2)
    flow = zuko.flows.CNF(2, 0, hidden_features=(64, 64, 64))
    rows = torch.tensor(np.asarray(x))
    density, gradient = [], []
    for _ in range(10):
        start = time.perf_counter()
        with torch.no_grad():
            flow().log_prob(rows)
        density.append(1e3 * (time.perf_counter() - start))
        start = time.perf_counter()
        (-flow().log_prob(rows).mean()).backward()
        gradient.append(1e3 * (time.perf_counter() - start))
    print(f"{'zuko, untrained':18} {min(density):9.1f} {min(density) / ours_density:8.2f}", end="")
    print(f" {min(gradient):14.1f} {min(gradient) / ours_step:8.2f}")


if __name__ == "__main__":
    main()
