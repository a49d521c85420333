"""Tests of ``gauss_flows.flows``."""

import equinox as eqx
import flowjax.bijections as fb
import flowjax.distributions as fd
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats
from cases import now
from flow_cases import SMALL, with_random_networks
from network_support import KEY, built, find, hidden_sizes
from paramax import non_trainable, unwrap

import gauss_flows as gf
from gauss_flows.bijection import partition

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("make", [gf.maf, gf.iaf])
def test_maf_and_iaf_start_at_the_base_and_agree_with_themselves(make):
    """A new flow is the standard normal; the density of samples is that evaluated afterwards."""
    with jax.enable_x64(True):
        flow = make(jr.key(0), 3, layers=2, cond_dim=1, nn_width=8)
        c = jnp.ones((50, 1))
        x = jr.normal(jr.key(1), (50, 3))
        normal = jax.scipy.stats.norm.logpdf(x).sum(1)
        np.testing.assert_allclose(eqx.filter_jit(flow.log_prob)(x, c), normal, rtol=1e-12)
        params, static = partition(flow)
        params = jax.tree.map(lambda a: a + 0.3 * jr.normal(jr.key(3), a.shape, a.dtype), params)
        flow = eqx.combine(params, static)
        draw = eqx.filter_jit(lambda f: f.sample_and_log_prob(jr.key(2), condition=c))
        x, log_prob = draw(flow)
        np.testing.assert_allclose(eqx.filter_jit(flow.log_prob)(x, c), log_prob, atol=1e-10)
        assert isinstance(flow.bijection, fb.Invert if make is gf.maf else fb.Scan)  # the quick way


MAKERS = ("coupling_flow", "maf", "iaf", "residual_flow", "gaussianization_flow")


@pytest.mark.parametrize("cond_dim", [None, 2])
@pytest.mark.parametrize("name", now(MAKERS, "coupling_flow", "maf"))
def test_one_dimension(name, cond_dim):
    make = getattr(gf, name)
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
        (gf.coupling_flow(jr.key(0), 1, actnorm=True, **options), [gf.ActNorm, fb.Flip, gf.LULinear]),
    ):
        layer = flow.bijection.bijection.bijection
        assert [type(part) for part in layer.bijections] == [*first, last]


def test_a_new_coupling_flow_is_its_bijector_and_every_coordinate_has_its_turn():
    x = jr.normal(jr.key(1), (20, 3))
    new = gf.coupling_flow(jr.key(0), 3, layers=2, bijector=gf.Affine(), nn_width=8)
    np.testing.assert_allclose(jax.jit(jax.vmap(new.bijection.inverse))(x), x, atol=1e-5)
    network = gf.conditioners.mlp(8, 1, activation=jnp.tanh)
    options = {"layers": 3, "bijector": gf.Affine(), "conditioner": network}
    for mixing in ("lu", "flip"):  # before anything is trained
        loud = gf.coupling_flow(jr.key(0), 4, mixing=mixing, **options)
        assert jax.jit(jax.jacfwd(loud.bijection.inverse))(jnp.ones(4)).all()


@pytest.mark.nightly
def test_coupling_flow_mixings_and_refusals():
    for mixing in ("householder", "lu", "flip"):
        flow = gf.coupling_flow(jr.key(0), 3, layers=2, mixing=mixing, nn_width=8, actnorm=True)
        assert gf.check_bijection(flow.bijection.bijection, jr.normal(jr.key(1), (20, 3))).ok
        assert flow.sample(jr.key(2), (4,)).shape == (4, 3)
    for options, name in (({"layers": 0}, "layers"), ({"mixing": "stir"}, "mixing")):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            gf.coupling_flow(jr.key(0), 2, **options)
    with pytest.raises(ValueError, match="`dim` must be a whole number of at least 2"):
        gf.coupling_flow(jr.key(0), 1)


def outline(make, *args, **options):
    """A flow without its values, its stacked layers, their names, and how many are stacked."""
    flow = built(make, *args, **options)
    (scan,) = find(flow, fb.Scan)
    kinds = (gf.ActNorm, fb.Flip, gf.LULinear, gf.HouseholderRotation, gf.Coupling)
    kinds += (gf.MaskedAutoregressive, gf.Residual, gf.MarginalGaussianization)
    parts = find(scan, *kinds)
    (count,) = {leaf.shape[0] for leaf in jax.tree.leaves(scan) if hasattr(leaf, "shape")}
    return flow, parts, [type(part).__name__ for part in parts], count


def test_coupling_flows_have_the_parts_that_they_list():
    _, (_, _, coupling), names, count = outline(gf.coupling_flow, 5)
    assert (names, count) == (["Flip", "LULinear", "Coupling"], 8)
    assert coupling.mask.tolist() == [True, True, False, False, False]
    (network,) = find(coupling, eqx.nn.MLP)
    assert hidden_sizes(network) == [64, 64]
    v = jnp.array([-0.5, 1.0])
    np.testing.assert_allclose(network.activation(v), jax.nn.silu(v), rtol=1e-6)
    assert network.layers[-1].weight.shape[-2] == 3 * (3 * 8 - 1)
    for mixing, between in (("flip", ["Flip"]), ("householder", ["HouseholderRotation"])):
        options = {"layers": 3, "mixing": mixing, "actnorm": True, "nn_width": 8, "nn_depth": 1}
        _, parts, names, count = outline(gf.coupling_flow, 4, cond_dim=2, **options)
        assert (names, count) == (["ActNorm", *between, "Coupling"], 3)
        assert parts[-1].cond_shape == (2,)
        (network,) = find(parts[-1], eqx.nn.MLP)
        assert hidden_sizes(network) == [8]


@pytest.mark.parametrize("dim", [2, 3])
def test_mixing_by_householder_starts_at_random_rotations(dim):
    """An even number of reflections, and no two layers alike."""
    affine = {"layers": 2, "bijector": gf.Affine(), "nn_width": 4, "nn_depth": 1}
    flow = gf.coupling_flow(KEY, dim, mixing="householder", **affine)
    (turn,) = find(flow, gf.HouseholderRotation)
    assert turn.params.shape[1] % 2 == 0
    matrix = lambda params: jax.jacfwd(eqx.tree_at(lambda b: b.params, turn, params).transform)(
        jnp.zeros(dim)
    )
    first, second = np.asarray(jax.jit(jax.vmap(matrix))(turn.params))
    np.testing.assert_allclose(np.linalg.det(first), 1, atol=1e-5)
    assert np.abs(first - np.eye(dim)).max() > 0.1
    assert np.abs(first - second).max() > 0.1
    x = np.arange(1.0, dim + 1, dtype=np.float32)
    np.testing.assert_allclose(
        jax.jit(lambda x: flow.bijection.inverse(x))(x), second @ first @ x, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("make", [gf.maf, gf.iaf])
def test_autoregressive_flows_have_the_parts_that_they_list(make):
    _, (_, layer), names, count = outline(make, 4)
    assert (names, count) == (["Flip", "MaskedAutoregressive"], 5)
    assert (layer.passes, layer.inverse_method) == (4, "incremental")
    (network,) = find(layer, gf.conditioners.MaskedMLP)
    assert hidden_sizes(network) == [64, 64]
    v = jnp.array([-0.5, 1.0])
    np.testing.assert_allclose(network.activation(v), jax.nn.silu(v), rtol=1e-6)
    assert network.layers[-1].weight.shape[-2] == 4 * (3 * 8 - 1)
    options = {"layers": 2, "passes": 2, "nn_width": 8, "nn_depth": 1, "inverse": "jacobi"}
    _, (_, layer), _, count = outline(make, 4, **options)
    assert (count, layer.passes, layer.inverse_method) == (2, 2, "jacobi")
    assert hidden_sizes(find(layer, gf.conditioners.MaskedMLP)[0]) == [8]


def test_residual_flows_have_the_parts_that_they_list():
    _, (_, block), names, count = outline(gf.residual_flow, 3)
    assert (names, count) == (["ActNorm", "Residual"], 16)
    assert [bias.shape[-1] for bias in block.network.biases] == [64, 64, 3]
    assert (block.lipschitz, block.log_det.method, block.inverse_method) == (0.9, "exact", "newton")
    _, parts, names, count = outline(gf.residual_flow, 3, layers=2, actnorm=False, lipschitz=0.5)
    assert (names, count, parts[0].lipschitz) == (["Residual"], 2, 0.5)


def test_gaussianization_flows_have_the_parts_that_they_list():
    flow, (marginal, turn), names, count = outline(gf.gaussianization_flow, 3)
    assert (names, count) == (["MarginalGaussianization", "HouseholderRotation"], 8)
    assert turn.params.shape == (8, 3, 3)  # as many reflections as coordinates
    assert marginal.raw.shape == (8, 3, 3 * 8)
    first = find(flow, gf.ActNorm, fb.Scan)[0]
    assert isinstance(first, gf.ActNorm)
    layer = gf.MarginalGaussianization((2,))
    x = jnp.array([0.3, -1.5])
    both = jax.jit(lambda x: (layer.transform(x), jax.vmap(gf.MixtureGaussianCDF(8).transform)(x)))
    np.testing.assert_allclose(*both(x), rtol=1e-5)


def test_another_base_starts_and_trains_as_it_says():
    """Student's t: its density at the start, heavier tails, and a trained number of degrees of freedom."""
    base = fd.StudentT(3 * jnp.ones(2))
    flow = gf.coupling_flow(jr.key(0), 2, base=base, **SMALL)
    x = jnp.array([[0.0, 1.0], [30.0, -2.0]])
    np.testing.assert_allclose(
        flow.log_prob(x), scipy.stats.t(3).logpdf(np.asarray(x)).sum(axis=1), rtol=1e-5
    )
    options = {"steps": 4, "batch_size": 32, "progress": False}
    data = jr.normal(jr.key(1), (100, 2))
    trained = gf.fit(jr.key(2), flow, data, **options).flow
    assert not np.allclose(unwrap(trained.base_dist).df, 3.0)
    frozen = gf.coupling_flow(jr.key(0), 2, base=non_trainable(base), **SMALL)
    np.testing.assert_array_equal(unwrap(gf.fit(jr.key(2), frozen, data, **options).flow.base_dist).df, 3.0)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (gf.Affine(), "`base` must be a flowjax distribution; got Affine"),
        (fd.Normal(jnp.zeros(3)), r"`base` must have shape \(2,\) and no condition; got shape \(3,\)"),
        (gf.coupling_flow(jr.key(0), 2, cond_dim=1, **SMALL), r"and a condition of shape \(1,\)"),
    ],
)
def test_a_base_is_refused(base, message):
    with pytest.raises(ValueError, match=message):
        gf.coupling_flow(jr.key(0), 2, base=base)
