"""Tests of ``gauss_flows.transformed``."""

import copy
import os
import pickle
import subprocess
import sys
import textwrap

import cloudpickle
import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from flow_cases import FLOWS, SMALL, with_random_networks

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_a_broken_row_has_no_log_density():
    flow = FLOWS["coupling_flow"]()
    x = jr.normal(jr.key(1), (4, 2)).at[1, 0].set(jnp.nan).at[3, 1].set(jnp.nan)
    np.testing.assert_array_equal(jnp.isnan(flow.log_prob(x)), [False, True, False, True])
    conditional = gf.maf(jr.key(0), 2, cond_dim=1, **SMALL)
    log_prob = conditional.log_prob(jnp.ones((3, 2)), jnp.array([[0.0], [jnp.nan], [1.0]]))
    np.testing.assert_array_equal(jnp.isnan(log_prob), [False, True, False])
    # Outside the support of a bounded flow the density is zero, and is said to be.
    positive = gf.Transformed(flow, fb.Exp((2,)))
    log_prob = positive.log_prob(jnp.array([[1.0, 1.0], [-1.0, 1.0], [jnp.nan, 1.0]]))
    assert jnp.isfinite(log_prob[0])
    assert log_prob[1] == -jnp.inf
    assert jnp.isnan(log_prob[2])


@pytest.mark.parametrize("name", list(FLOWS)[:7])
def test_flows_can_be_copied_and_sent_to_another_process(name):
    flow, x = FLOWS[name](), jr.normal(jr.key(1), (5, 2))
    for twin in (copy.deepcopy(flow), pickle.loads(cloudpickle.dumps(flow))):
        assert jax.tree.structure(twin) == jax.tree.structure(flow)
        np.testing.assert_array_equal(twin.log_prob(x), flow.log_prob(x))
        a, b = (jax.tree.leaves(eqx.filter(tree, eqx.is_array)) for tree in (flow, twin))
        assert not any(first is second for first, second in zip(a, b, strict=True))


def test_a_flow_names_the_argument_that_does_not_fit():
    flow = FLOWS["coupling_flow"]()
    conditional = gf.maf(jr.key(0), 2, cond_dim=1, **SMALL)
    x, c = jnp.ones((3, 2)), jnp.ones((3, 1))
    for name, call in (
        ("x", lambda: flow.log_prob(jnp.ones(3))),
        ("x", lambda: flow.log_prob([1.0, 2.0])),
        ("x", lambda: flow.log_prob(x * 1j)),
        ("x", lambda: flow.log_prob(np.ma.masked_equal(np.ones((3, 2)), 0))),
        ("x", lambda: flow.log_prob(np.ones((3, 2), object))),
        ("x", lambda: flow.log_prob("text")),
        ("condition", lambda: conditional.log_prob(x)),
        ("condition", lambda: conditional.log_prob(x, jnp.ones((3, 2)))),
        ("condition", lambda: conditional.sample(jr.key(0), (3,))),
        ("condition", lambda: conditional.sample(jr.key(0), (), c * 1j)),
        ("key", lambda: flow.sample(0)),
        ("key", lambda: flow.sample(jr.PRNGKey(0))),
        ("key", lambda: flow.sample(jr.split(jr.key(0), 2))),
        ("sample_shape", lambda: flow.sample(jr.key(0), 5)),
        ("sample_shape", lambda: flow.sample(jr.key(0), (-1,))),
        ("sample_shape", lambda: flow.sample(jr.key(0), (2.5,))),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must|`{name}`.*must"):
            call()


def test_a_stack_of_flows_is_named():
    """Used as one flow it would broadcast, or fail with an error about shapes."""
    make = lambda key: gf.coupling_flow(key, 2, bijector=gf.Affine(), **SMALL)
    stack = eqx.filter_vmap(make)(jr.split(jr.key(0), 3))
    for call in (
        lambda: stack.log_prob(jnp.ones((3, 2))),
        lambda: stack.sample(jr.key(0), (3,)),
        lambda: stack.sample_and_log_prob(jr.key(0)),
    ):
        with pytest.raises(ValueError, match=r"stack of flows.* must be used one at a time"):
            call()


def test_points_that_become_infinite_in_single_precision_are_refused():
    x = np.array([[0.0, 1e39], [1.0, 2.0]])
    flow = FLOWS["a Chain by hand"]()
    conditional = gf.AffineCoupling(jr.key(0), (2,), cond_dim=2, nn_width=8)
    for name, size, call in (
        ("x", 4, lambda: flow.log_prob(x)),
        ("x", 2, lambda: conditional.transform(x[0], x[1])),
        ("y", 2, lambda: conditional.inverse(x[0], x[1])),
        ("condition", 2, lambda: conditional.transform(x[1], x[0])),
        ("x", 1, lambda: gf.Affine().transform(x[0, 1])),
    ):
        message = f"`{name}` must stay finite in float32; 1 of {size} values"
        # JAX's own cast warns of the overflow first.
        with np.errstate(over="ignore"), pytest.raises(ValueError, match=message):
            call()
    assert gf.Affine().transform(np.array(np.inf)) == np.inf  # an infinity that the caller passed
    with jax.enable_x64(True):
        assert gf.Affine().transform(np.array(1e39)) == 1e39


@pytest.mark.nightly  # a process with eight devices, which takes 18 s
def test_flows_run_under_shard_map():
    """Eight devices, one row of points each: densities, sequential and iterated inverses, estimates."""
    code = textwrap.dedent("""
        import jax, jax.numpy as jnp, jax.random as jr, numpy as np, gauss_flows as gf
        from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
        small = {"layers": 2, "nn_width": 4}
        mixtures = {"bijector": gf.MixtureGaussianCDF(2), **small}
        maf, affine = gf.maf(jr.key(0), 2, **mixtures), {"bijector": gf.Affine(), **small}
        jacobi = gf.iaf(jr.key(0), 2, inverse="jacobi", **affine)
        plain = gf.iaf(jr.key(0), 2, inverse="sequential", **affine)
        residual = gf.residual_flow(jr.key(0), 2, **small)
        roulette = gf.residual_flow(jr.key(0), 2, log_det="roulette", **small)
        def run(x):
            return (
                maf.log_prob(x), jax.vmap(maf.bijection.transform_and_log_det)(x),
                jacobi.log_prob(x), plain.log_prob(x),
                residual.log_prob(x), jax.vmap(residual.bijection.transform)(x),
            )
        x = jr.normal(jr.key(1), (8, 2))
        wanted = jax.jit(run)(x)
        for mesh in (jax.make_mesh((8,), ("data",)), Mesh(np.array(jax.devices()), ("data",))):
            here = jax.device_put(x, NamedSharding(mesh, P("data")))
            split = lambda f: jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("data"), out_specs=P("data")))
            for a, b in zip(jax.tree.leaves(split(run)(here)), jax.tree.leaves(wanted), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        estimate = split(lambda x: gf.estimate_log_prob(roulette, x, jr.key(2)))(here)
        assert bool(jnp.isfinite(estimate).all())
        print("equal")
    """)
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | devices, capture_output=True, text=True, check=False
    )
    assert run.stdout == "equal\n", run.stderr


def test_numbers_beyond_32_bits_are_not_cut():
    """Integers are cast to floats before JAX cuts them to 32 bits; other byte orders are understood."""
    layer = gf.ActNorm((1,))
    for value in (np.array([3_000_000_000]), np.array([3e9]), np.array([3e9], ">f8"), np.array([3e9], ">f4")):
        np.testing.assert_allclose(layer.transform(value), 3e9, rtol=1e-6)
    np.testing.assert_allclose(gf.Affine().transform(3_000_000_000), 3e9, rtol=1e-6)
    flow = gf.maf(jr.key(0), 1, cond_dim=1, **SMALL)
    flow = with_random_networks(flow, 0.5, jr.key(1))
    exact, same = (flow.log_prob(np.zeros(1), np.array([c])) for c in (2**33, float(2**33)))
    assert exact == same
    for value in (1e39, np.array(1e39)):
        with pytest.raises(ValueError, match="`x` must stay finite in float32"):
            gf.Affine().transform(value)
    with pytest.raises(ValueError, match=r"`x` must be an array of real numbers; got dtype timedelta64"):
        layer.transform(np.array([3], "timedelta64[s]"))


def test_a_flow_with_broken_parameters_has_no_log_density():
    flow = FLOWS["coupling_flow"]()
    where = lambda f: f.bijection.bijection.bijection.bijections[1].bias
    broken = eqx.tree_at(where, flow, where(flow).at[0, 0].set(jnp.nan))
    assert bool(jnp.isnan(broken.log_prob(jnp.ones((3, 2)))).all())
