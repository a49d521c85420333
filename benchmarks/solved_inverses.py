"""The solved inverses, mixture CDF and deep sigmoid, against their forward passes and bisection, in one run.

    make bench BENCHMARKS=benchmarks/solved_inverses.py

4,096 points, 8 components, transform_and_log_det and inverse_and_log_det, both compiled. Three
kinds of mixture: as initialised, perturbed, and hard (well-separated components of very different
weights and widths). Prints ratios: absolute times differ from machine to machine.
"""

import platform
from functools import partial
from itertools import product

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from paramax import unwrap

import gauss_flows as gf
from experiments.timing import seconds

POINTS, COMPONENTS = 4096, 8


def mixtures(kind, spread):
    keys = jr.split(jr.key(0), 3)
    shape = (POINTS, COMPONENTS)
    base = kind(COMPONENTS)
    build = lambda logits, means, raw: eqx.tree_at(
        lambda b: (b.logits, b.means, b.log_scales), base, (logits, means, raw)
    )
    return jax.vmap(build)(
        1.5 * spread * jr.normal(keys[0], shape),
        (1 - spread) * base.means + 3 * spread * jr.normal(keys[1], shape),
        (1 - spread) * jnp.log(0.6) + spread * (jr.normal(keys[2], shape) - 0.5),
    )


def bisection(b, z, steps):
    """The rival: halve the same exact bracket."""
    ends = b.means + jnp.exp(b.log_scales) * z

    def step(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        below = b.transform(middle) < z
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, steps, step, (ends.min(), ends.max()))
    return 0.5 * (low + high)


def main():
    print(f"jax {jax.__version__}, {platform.machine()}, {jax.local_device_count()} CPU device")
    forward = jax.jit(jax.vmap(lambda b, x: b.transform_and_log_det(x)))
    inverse = jax.jit(jax.vmap(lambda b, z: b.inverse_and_log_det(z)))
    count = jax.jit(jax.vmap(lambda b, z: unwrap(b)._solve(z)[1]))
    halve = jax.jit(jax.vmap(lambda b, z: bisection(b, z, 24)))  # width 2^-24: about 1e-6
    print("bijector            type     mixture      steps: median, most  inverse/forward  bisection/forward")
    spreads = (("initial", 0.0), ("perturbed", 0.2), ("hard", 1.0))
    for kind, x64, (name, spread) in product((gf.MixtureGaussianCDF, gf.DeepSigmoid), (False, True), spreads):
        with jax.enable_x64(x64):
            z = jr.normal(jr.key(4), (POINTS,))
            b = mixtures(kind, spread)
            x, _ = inverse(b, z)
            fwd, inv, bis = seconds([partial(forward, b, x), partial(inverse, b, z), partial(halve, b, z)])
            steps = count(b, z)
            print(
                f"{kind.__name__:<19} {z.dtype!s:<8} {name:<12} {int(jnp.median(steps)):>6},"
                f" {int(steps.max()):<12} {inv / fwd:<16.1f} {bis / fwd:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
