"""What the tests share. JAX is strict here, so that tests meet what users would."""

import os

import jax
import pytest
from hypothesis import HealthCheck, settings

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "standard")


# `make test` draws the same few examples each time; `make nightly` others, and more of them.
settings.register_profile("default", max_examples=5, deadline=None, derandomize=True, database=None)
settings.register_profile(
    "nightly", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Each test twice: in JAX's default precision, and with x64 switched on."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture(scope="module")
def quick_compilation():
    """For programs that run once on few points: compiling them is nearly all the time, so optimise less."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "flow.npz"
