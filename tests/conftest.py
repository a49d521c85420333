"""What the tests share. JAX is strict here, so that tests meet what users would."""

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "standard")


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
