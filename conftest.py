"""What every test and every executed notebook shares: the programs that JAX has compiled.

Compilation is most of the tests' time, and many processes compile the same, so they share one folder. JAX
does not write these files atomically: a process that reads one too early warns of it and compiles anew, which
is no fault of a test. `rm -rf .pytest_cache` starts afresh.
"""

import os
from pathlib import Path

import pytest

pytest_plugins = ["tests.figures"]

folder = Path(__file__).parent / ".pytest_cache" / "jax" / "main"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
os.environ.setdefault("PYTHONWARNINGS", "ignore:Error reading persistent compilation cache entry")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_are_freed():
    """Between files, before there are too many: each maps memory, and Linux allows a process 65,530 maps."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 25_000:
        import jax

        jax.clear_caches()


def _quick_doctests(item, on):
    """An example runs once on few points: compiling it is nearly all its time, so optimise less."""
    if isinstance(item, pytest.DoctestItem):
        import jax

        jax.config.update("jax_disable_most_optimizations", on)


def pytest_runtest_setup(item):
    """Before each test."""
    _quick_doctests(item, True)


def pytest_runtest_teardown(item):
    """After each test."""
    _quick_doctests(item, False)
