"""Whole flows: what a plain call costs, points far from the data, one dimension, broken rows, devices."""

import copy
import functools
import os
import pickle
import subprocess
import sys
import textwrap

import cloudpickle
import equinox as eqx
import flowjax.bijections as fb
import flowjax.distributions as fd
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from paramax import unwrap

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")
SMALL = {"layers": 2, "nn_width": 8}
MENU = {
    "Affine": gf.Affine(),
    "exp_affine": gf.bijectors.exp_affine(),
    "flowjax's Affine": fb.Affine(),
    "Loc": fb.Loc(jnp.zeros(())),
    "MixtureGaussianCDF": gf.MixtureGaussianCDF(3),
    "DeepSigmoid": gf.DeepSigmoid(3),
    "RQSpline": gf.RQSpline(n_bins=4),
}


def stacked(kind, distribution):
    """A flow made by hand: layers in a Scan, or one after the other in a Chain."""
    keys = jr.split(jr.key(0), 2)
    make = lambda key: gf.AffineCoupling(key, (2,), nn_width=8)
    layers = gf.Scan(eqx.filter_vmap(make)(keys)) if kind == "Scan" else fb.Chain([make(key) for key in keys])
    return distribution(fd.Normal(jnp.zeros(2)), fb.Invert(layers))


FLOWS = {
    "coupling_flow": lambda: gf.coupling_flow(jr.key(0), 2, **SMALL),
    "coupling_flow, mixtures": lambda: gf.coupling_flow(
        jr.key(0), 2, bijector=gf.MixtureGaussianCDF(3), **SMALL
    ),
    "maf": lambda: gf.maf(jr.key(0), 2, **SMALL),
    "iaf": lambda: gf.iaf(jr.key(0), 2, **SMALL),
    "residual_flow": lambda: gf.residual_flow(jr.key(0), 2, **SMALL),
    "gaussianization_flow": lambda: gf.gaussianization_flow(jr.key(0), 2, layers=2),
    "rbig": lambda: gf.rbig(jr.key(0), jr.normal(jr.key(1), (200, 2)), layers=2).flow,
    "a Scan by hand": lambda: stacked("Scan", gf.Transformed),
    "a Chain by hand": lambda: stacked("Chain", gf.Transformed),
    "a Scan in flowjax's class": lambda: stacked("Scan", fd.Transformed),
    "a Chain in flowjax's class": lambda: stacked("Chain", fd.Transformed),
}


class Reordered(gf.Bijection):
    """A layer in another order of the coordinates, which is a NumPy array."""

    order: np.ndarray
    inner: gf.ActNorm1D
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


@pytest.mark.parametrize("name", FLOWS)
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


@pytest.mark.parametrize("name", ["coupling_flow", "maf", "residual_flow", "a Scan by hand"])
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
    inner, seen = gf.ActNorm1D((3,)), compilations()
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


def with_random_networks(flow, scale, key):
    """The flow with normal numbers in all weights and biases of its networks."""
    keys = iter(jr.split(key, 100))
    is_network = lambda node: isinstance(node, eqx.nn.MLP | gf.conditioners.MaskedMLP | gf.LipschitzMLP)
    draw = lambda a: scale * jr.normal(next(keys), a.shape) if eqx.is_inexact_array(a) else a
    change = lambda node: jax.tree.map(draw, node) if is_network(node) else node
    return jax.tree.map(change, flow, is_leaf=is_network)


def far_cases():
    """Every factory with every map; some pairs are left to `make nightly`."""
    for make in (gf.coupling_flow, gf.maf, gf.iaf):
        for name in MENU:
            later = make is gf.iaf and name != "DeepSigmoid"
            later = later or (make is gf.maf and name in ("flowjax's Affine", "Loc", "RQSpline"))
            marks = [pytest.mark.nightly] if later else []
            yield pytest.param(make, name, id=f"{make.__name__}-{name}", marks=marks)


@pytest.mark.parametrize(("make", "name"), list(far_cases()))
def test_no_weights_make_a_far_point_overflow(make, name):
    """Log-densities and their gradients are finite up to 1e6 standard deviations, with any networks."""
    flow = make(jr.key(0), 2, bijector=MENU[name], layers=5, nn_width=8)
    x = jr.normal(jr.key(1), (16, 2))
    run = eqx.filter_jit(lambda flow, x: jax.vmap(jax.value_and_grad(lambda v: flow.log_prob(v)))(x))
    for scale in (1.0, 30.0, 1e3, 1e5):
        wild = with_random_networks(flow, scale, jr.key(2))
        for far in (1.0, 1e3, 1e6):
            value, gradient = run(wild, far * x)
            assert bool(jnp.isfinite(value).all() & jnp.isfinite(gradient).all()), (scale, far)


@pytest.mark.parametrize("name", ["Affine", "exp_affine", "MixtureGaussianCDF", "DeepSigmoid"])
def test_limits_leave_ordinary_outputs_exactly_as_they_are(name):
    """Up to three quarters of the limits: with 8 layers scales within exp(±2.2), shifts up to 7e5."""
    free = gf.bijectors.Family(MENU[name])
    limited = gf.bijectors.Family(MENU[name], max_log_scale=3.0)
    out = jnp.linspace(-2.2, 2.2, 7)[:, None] * jnp.ones(free.size)[None, :]
    np.testing.assert_array_equal(limited.theta(out), free.theta(out))
    far = limited.theta(1e9 * out) - limited.theta(0 * out)
    low, high = np.array(limited._limits).T[:, None, :]
    assert bool((far >= low * 1.0001).all() & (far <= high * 1.0001).all())
    slope = jax.vmap(jax.grad(lambda v: gf.bijectors.soft_limit(v, -3.0, 3.0)))(
        jnp.array([2.25, -2.25, 2.2501])
    )
    np.testing.assert_allclose(slope, 1, rtol=1e-4)


@pytest.mark.parametrize("kind", [gf.MixtureGaussianCDF, gf.DeepSigmoid])
def test_limits_keep_the_first_component_wide_and_let_the_others_be_narrow(kind):
    """At extreme outputs no log-scale is above the limit, and only that of the first is bounded below."""
    family = gf.bijectors.Family(kind(3, scales=np.ones(3)), max_log_scale=3.0)
    ends = jax.vmap(lambda theta: unwrap(family(theta)).log_scales)(
        family.theta(jnp.array([-1e9, 1e9])[:, None] * jnp.ones(family.size)[None, :])
    )
    np.testing.assert_allclose(ends, [[-3, -5, -5], [3, 3, 3]], rtol=1e-4)


def test_the_log_of_a_scale_that_underflows_is_right(dtype):
    """With softplus(r), r = -1e4: the log-determinant is r, and no -inf."""
    for raw, wanted in ((-1e4, -1e4), (-30.0, -30.0), (0.0, np.log(np.log(2))), (1e4, np.log(1e4))):
        affine = eqx.tree_at(lambda a: a.scale.args, gf.Affine(), (jnp.array(raw, dtype),))
        np.testing.assert_allclose(affine.transform_and_log_det(1.0)[1], wanted, rtol=1e-6)
        slope = jax.grad(lambda r: eqx.tree_at(lambda a: a.scale.args, gf.Affine(), (r,)).scale.log)
        finite = jnp.array(raw, dtype)
        wanted = 1 if raw < -20 else jax.nn.sigmoid(finite) / jax.nn.softplus(finite)
        np.testing.assert_allclose(slope(finite), wanted, rtol=1e-5)


MAKERS = [gf.coupling_flow, gf.maf, gf.iaf, gf.residual_flow, gf.gaussianization_flow]


@pytest.mark.parametrize("cond_dim", [None, 2])
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_one_dimension(make, cond_dim):
    """A flow of one number, with or without a condition: it integrates to 1, and its samples follow it."""
    if make is gf.gaussianization_flow:
        if cond_dim:
            return  # this family takes no condition
        flow = gf.warm_start(make(jr.key(0), 1, layers=2), 2 + jnp.abs(jr.normal(jr.key(1), (200, 1))))
    else:
        flow = make(jr.key(0), 1, cond_dim=cond_dim, **SMALL)
        flow = with_random_networks(flow, 0.5, jr.key(3))
    x = jnp.linspace(-30, 30, 6001)[:, None]
    totals = []
    for value in (0.0, 1.0):
        c = None if cond_dim is None else jnp.full(cond_dim, value)
        log_prob = jax.jit(jax.vmap(lambda x, c=c: flow.log_prob(x, c)))
        density = jnp.exp(log_prob(x))
        totals.append(float(jnp.trapezoid(density, x[:, 0])))
        sample = jax.jit(jax.vmap(lambda key, c=c: flow.sample(key, (), c)))(jr.split(jr.key(4), 4000))
        assert sample.shape == (4000, 1)
        mean = float(jnp.trapezoid(x[:, 0] * density, x[:, 0]))
        assert abs(float(sample.mean()) - mean) < 5 * float(sample.std()) / 4000**0.5
    np.testing.assert_allclose(totals, 1, atol=1e-3)
    if cond_dim:
        other = flow.log_prob(x[3000], jnp.zeros(2))
        assert abs(float(other - flow.log_prob(x[3000], c))) > 1e-3
    gf.check_bijection(fb.Invert(flow.bijection), jr.normal(jr.key(5), (8, 1)), c)


@pytest.mark.parametrize("cond_dim", [None, 2])
def test_the_layers_of_one_coordinate(cond_dim):
    """The linear part that was asked for, then a map whose parameters depend on the condition alone."""
    last = gf.MarginalGaussianization if cond_dim is None else gf.MaskedAutoregressive
    options = {"cond_dim": cond_dim, **SMALL}
    for flow, first in (
        (gf.maf(jr.key(0), 1, **options), [gf.LULinear]),
        (gf.coupling_flow(jr.key(0), 1, **options), [fb.Flip, gf.LULinear]),
        (gf.coupling_flow(jr.key(0), 1, mixing="flip", **options), [fb.Flip]),
        (gf.coupling_flow(jr.key(0), 1, mixing="householder", **options), [gf.HouseholderRotation]),
        (gf.coupling_flow(jr.key(0), 1, actnorm=True, **options), [gf.ActNorm1D, fb.Flip, gf.LULinear]),
    ):
        layer = flow.bijection.bijection.bijection
        assert [type(part) for part in layer.bijections] == [*first, last]


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
    layer = gf.ActNorm1D((1,))
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


def test_a_stack_of_flows_is_not_set_from_data():
    stack = eqx.filter_vmap(lambda key: gf.maf(key, 2, **SMALL))(jr.split(jr.key(0), 2))
    for call in (gf.data_init, gf.warm_start):
        with pytest.raises(ValueError, match="must be used one at a time"):
            call(stack, jnp.ones((20, 2)))


def test_gradients_of_unlimited_parameters_do_not_overflow():
    """Far points send large cotangents back: times the width of an unlimited range they were infinite."""
    limit = lambda v: gf.bijectors.soft_limit(v, jnp.float32(-1e30), jnp.float32(1e30))
    np.testing.assert_allclose(jax.vjp(limit, jnp.float32(0.1))[1](jnp.float32(2e9))[0], 2e9, rtol=1e-6)


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


def test_a_bijector_without_parameters_is_named():
    for make in (gf.coupling_flow, gf.maf):
        with pytest.raises(ValueError, match="`bijector` must have a parameter for the network to set"):
            make(jr.key(0), 2, bijector=fb.Tanh(), **SMALL)
