"""Time a determinant for the chapter "Change of variables".

    python -m experiments.change_of_variables.run      under a minute

The table ``determinant_cost.csv`` beside this file names the versions, the machine and the date. The chapter
draws the table and repeats one row of it.
"""

import functools
import math

import jax
import jax.numpy as jnp
import jax.random as jr
from threadpoolctl import threadpool_limits

from experiments.common import seconds, write_table

# The shortest of several times is closest to the time on an undisturbed machine.
shortest = functools.partial(seconds, take=min, budget=math.inf)


@jax.jit
def by_elimination(J):
    """Return log|det J| of any matrix."""
    return jnp.linalg.slogdet(J)[1]


@jax.jit
def by_diagonal(diagonal):
    """Return log|det J| of a triangular matrix, from its diagonal."""
    return jnp.log(jnp.abs(diagonal)).sum()


def triangle(size):
    """Return a random lower triangular matrix with a diagonal away from 0 on average."""
    return jnp.tril(jr.normal(jr.key(0), (size, size))) + 2 * jnp.eye(size)


def sweep_cost():
    """Write the milliseconds that log|det J| takes, by elimination and by the diagonal of a triangle."""
    rows = []
    for size in (32, 64, 128, 256, 512, 1024, 2048):
        J = triangle(size)
        d = jnp.diag(J)
        ways = [lambda J=J: by_elimination(J), lambda d=d: by_diagonal(d)]
        with threadpool_limits(1):  # otherwise only large sizes would use several threads
            times = shortest(ways, rounds=40)
        rows.append([size, *(f"{1e3 * t:.4g}" for t in times)])
        print(rows[-1], flush=True)
    write_table("change_of_variables/determinant_cost.csv", ["size", "full", "diagonal"], rows)


if __name__ == "__main__":
    sweep_cost()
