"""How the benchmarks time: functions in turn, so that a slow minute slows them all."""

import statistics
import time

import jax


def seconds(functions, rounds=15, budget=10.0, take=statistics.median):
    """Time the functions in turn and return the median (or ``take``) of each; the first round compiles.

    Each function runs once more before it is timed: the threads of another library wait for work for a while
    after theirs is done, and would slow the function that comes next.

    After ``budget`` seconds no new round begins, but there are at least three.
    """
    times = [[] for _ in functions]
    begin = time.perf_counter()
    for round_ in range(rounds + 1):
        if round_ > 3 and time.perf_counter() - begin > budget:
            break
        for f, record in zip(functions, times, strict=True):
            jax.block_until_ready(f())
            start = time.perf_counter()
            jax.block_until_ready(f())
            if round_:
                record.append(time.perf_counter() - start)
    return [take(record) for record in times]
