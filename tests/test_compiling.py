"""Tests of ``gauss_flows.compiling``."""

import copy
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from cases import now
from flow_cases import FLOWS, SMALL

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Reordered(gf.Bijection):
    """A layer in another order of the coordinates, which is a NumPy array."""

    order: np.ndarray
    inner: gf.ActNorm
    shape = (3,)
    cond_shape = None

    def transform_and_log_det(self, x, condition=None):
        return self.inner.transform_and_log_det(x[self.order])

    def inverse_and_log_det(self, y, condition=None):
        x, log_det = self.inner.inverse_and_log_det(y)
        return x[np.argsort(self.order)], log_det


@functools.cache
def compilations() -> list:
    """One entry for every program that is compiled from now on, or found in the cache on disk."""
    seen: list[str] = []
    listen = lambda event, seconds, **_: seen.append(event) if "backend_compile" in event else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    return seen


@pytest.mark.parametrize(
    "name",
    now(
        FLOWS, "coupling_flow", "maf", "residual_flow", "rbig", "a Scan by hand", "a Chain in flowjax's class"
    ),
)
def test_repeated_plain_calls_compile_nothing(name):
    flow, seen = FLOWS[name](), compilations()

    def calls(seed):
        x = jr.normal(jr.key(seed), (5, 2))
        return (
            flow.log_prob(x),
            flow.sample(jr.key(seed), (5,)),
            flow.sample_and_log_prob(jr.key(seed), (5,)),
            jax.vmap(flow.bijection.inverse_and_log_det)(x),
            flow.bijection.transform(x[0]),
        )

    before = len(seen)
    jax.jit(lambda x: x + 1)(1.0)
    assert len(seen) > before, "compilations are not counted"
    calls(1)
    calls(2)
    before = len(seen)
    calls(3)
    assert len(seen) == before


@pytest.mark.parametrize(
    "name", now(["coupling_flow", "maf", "residual_flow", "a Scan by hand"], "maf", "a Scan by hand")
)
def test_repeated_plain_gradients_compile_nothing(name):
    """Gradients in x and in the parameters, of densities and of samples, without ``jax.jit``."""
    flow, seen = FLOWS[name](), compilations()

    def calls(seed):
        x = jr.normal(jr.key(seed), (5, 2))
        return (
            jax.grad(lambda x: flow.log_prob(x).sum())(x),
            jax.grad(lambda x: jax.vmap(flow.bijection.inverse)(x).sum())(x),
            eqx.filter_grad(lambda flow: flow.log_prob(x).mean())(flow),
        )

    calls(1)
    calls(2)
    before = len(seen)
    calls(3)
    assert len(seen) == before


def test_flows_of_equal_structure_share_their_programs():
    seen, x = compilations(), jnp.ones((5, 2))
    first, second = (gf.maf(jr.key(seed), 2, bijector=gf.Affine(), **SMALL) for seed in (0, 1))
    twin = copy.deepcopy(first)
    first.log_prob(x)
    before = len(seen)
    second.log_prob(x)
    twin.log_prob(x)
    assert len(seen) == before


def test_layers_that_differ_in_numpy_arrays_alone_do_not_share_a_program():
    """Their arrays, of one shape and type, are part of the program and not an input of it."""
    inner, seen = gf.ActNorm((3,)), compilations()
    permuted = lambda *order: Reordered(np.array(order), inner)
    x = jnp.arange(3.0)
    np.testing.assert_array_equal(permuted(0, 2, 1).transform(x), [0, 2, 1])
    np.testing.assert_array_equal(permuted(2, 0, 1).transform(x), [2, 0, 1])
    before = len(seen)
    np.testing.assert_array_equal(permuted(0, 2, 1).transform(x), [0, 2, 1])
    assert len(seen) == before  # an equal array made anew is the same constant


def test_a_plain_call_equals_the_compiled_one():
    for name in ("coupling_flow", "a Chain by hand"):
        flow, x = FLOWS[name](), jr.normal(jr.key(1), (5, 2))
        np.testing.assert_allclose(
            flow.log_prob(x), jax.jit(lambda x, flow=flow: flow.log_prob(x))(x), rtol=1e-6
        )


def test_numbers_that_are_equal_but_not_alike_do_not_share_a_program():
    class Signed(gf.Bijection):
        sign: float
        shape = ()
        cond_shape = None

        def transform_and_log_det(self, x, condition=None):
            return x * np.copysign(2.0, self.sign), jnp.zeros(())

        def inverse_and_log_det(self, y, condition=None):
            return y / np.copysign(2.0, self.sign), jnp.zeros(())

    assert [float(Signed(s).transform(1.0)) for s in (0.0, -0.0)] == [2.0, -2.0]
