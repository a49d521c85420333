"""Each behaviour, default and order that a docstring states, pinned by an exact expectation."""

import inspect
import itertools
import math

import equinox as eqx
import flowjax.bijections as fb
import flowjax.distributions as fd
import jax
import jax.numpy as jnp
import jax.random as jr
import mutants
import numpy as np
import pytest
from paramax import unwrap
from scipy.special import digamma
from scipy.stats import multivariate_normal

import gauss_flows as gf
from gauss_flows.gaussianization import fit_mixture

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jr.key(0)
LOC = fb.Loc(jnp.zeros(()))  # z = x + its parameter


def fixed(weights):
    """A factory of linear conditioners whose weights are given."""
    return lambda in_size, out_size, *, key: lambda inputs: jnp.asarray(weights, float) @ inputs


def constant(output):
    """A factory of conditioners that always return the same output."""
    return lambda in_size, out_size, *, key: lambda inputs: jnp.asarray(output, float)


def find(tree, *kinds):
    """The nodes of these kinds, in the order in which data meets them."""
    wanted = lambda node: isinstance(node, kinds)
    return [node for node in jax.tree.leaves(tree, is_leaf=wanted) if wanted(node)]


def built(make, *args, **options):
    """What a function makes from a key, without its values: nothing is compiled."""
    return eqx.filter_eval_shape(lambda key: make(key, *args, **options), KEY)


def hidden_sizes(network):
    """The numbers of units in a network's hidden layers."""
    return [layer.weight.shape[-2] for layer in network.layers[:-1]]


# --- coupling layers ----------------------------------------------------------------------------


def test_a_conditioner_takes_the_passive_coordinates_in_c_order_and_then_the_condition():
    mask = np.array([[False, True], [True, False]])
    weights = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    layer = gf.Coupling(KEY, shape=(2, 2), bijector=LOC, mask=mask, cond_dim=2, conditioner=fixed(weights))
    x, c = np.array([[0.1, 0.2], [0.3, 0.4]]), np.array([0.5, 0.6])
    shift = weights @ [0.2, 0.3, 0.5, 0.6]
    np.testing.assert_allclose(layer.transform(x, c), x + np.diag(shift), rtol=1e-6)
    theta = layer.theta(jnp.array([0.2, 0.3]), jnp.array([0.5, 0.6]))
    np.testing.assert_allclose(theta, shift[:, None], rtol=1e-6)


def test_affine_scales_are_a_softplus_or_a_bounded_or_a_free_exponential():
    """The conditioner's output is a shift and a scale parameter for each active coordinate in turn."""
    out, x = [0.3, -1.2, 0.7, 2.5], np.array([1.0, 0.5, -2.0])
    shift, raw = np.array([0.3, 0.7]), np.array([-1.2, 2.5])
    make = lambda **options: gf.AffineCoupling(KEY, (3,), conditioner=constant(out), **options)
    free = gf.Coupling(KEY, shape=(3,), bijector=gf.bijectors.exp_affine(), conditioner=constant(out))
    for layer, scale in (
        (make(), np.log1p(np.exp(np.log(np.e - 1) + raw))),
        (make(log_scale_bound=2.0), np.exp(2 * np.tanh(raw / 2))),
        (free, np.exp(raw)),
    ):
        z, log_det = layer.transform_and_log_det(x)
        np.testing.assert_allclose(z, [x[0], *(scale * x[1:] + shift)], rtol=1e-5)
        np.testing.assert_allclose(log_det, np.log(scale).sum(), rtol=1e-5)


@pytest.mark.parametrize("make", [gf.MixtureGaussianCDFCoupling, gf.DeepSigmoidCoupling])
def test_mixture_couplings_have_eight_components_and_bounded_scales(make):
    assert built(make, (2,)).conditioner.out_size == 3 * 8
    for options, bound in (({}, 5.0), ({"log_scale_bound": 2.0}, 2.0)):
        layer = make(KEY, (2,), n_components=2, conditioner=constant(np.zeros(6)), **options)
        far = unwrap(layer.bijector(jnp.full(6, 1e3))).log_scales
        np.testing.assert_allclose(far, bound, rtol=1e-6)


def test_default_networks_have_two_hidden_layers_of_64_units():
    autoregressive = {"shape": (4,), "bijector": LOC}
    for make, options in (
        (gf.Coupling, {"shape": (4,), "bijector": LOC}),
        (gf.AffineCoupling, {"shape": (4,)}),
        (gf.MaskedAutoregressive, autoregressive),
    ):
        assert hidden_sizes(built(make, **options).conditioner) == [64, 64]
        sized = built(make, **options, nn_width=5, nn_depth=3).conditioner
        assert hidden_sizes(sized) == [5, 5, 5]
    v = jnp.array([-0.5, 1.0])
    for make in (gf.Coupling, gf.MaskedAutoregressive):
        network = built(make, **autoregressive).conditioner
        np.testing.assert_array_equal(network.activation(v), jax.nn.relu(v))
    for network in (
        built(gf.Residual, shape=(2,)).network,
        built(gf.LipschitzMLP, in_size=2, out_size=2),
    ):
        assert [len(bias) for bias in network.biases] == [64, 64, 2]
        assert network.lipschitz == 0.9


# --- autoregressive layers ----------------------------------------------------------------------


def test_any_network_takes_the_event_with_zeros_for_later_elements_and_then_the_condition():
    weights = np.arange(1.0, 13).reshape(3, 4)
    layer = gf.MaskedAutoregressive(
        KEY, shape=(3,), bijector=LOC, order=np.array([1, 0, 2]), cond_dim=1, conditioner=fixed(weights)
    )
    x = np.array([0.1, 0.2, 0.3])
    seen = np.array([[0, 0.2, 0, 0.5], [0, 0, 0, 0.5], [0.1, 0.2, 0, 0.5]])
    z = layer.transform(x, jnp.array([0.5]))
    np.testing.assert_allclose(z, x + (weights * seen).sum(axis=1), rtol=1e-6)


def test_the_inverse_is_incremental_where_the_network_is_masked():
    make = lambda **options: gf.MaskedAutoregressive(KEY, shape=(3,), bijector=LOC, **options)
    assert make().inverse_method == "incremental"
    assert make(conditioner=gf.conditioners.mlp(4, 1)).inverse_method == "sequential"
    assert make(inverse="jacobi").inverse_method == "jacobi"


def chain(size, **options):
    """z_i = x_i + x_{i-1} / 2, whose Jacobi sweeps change the next element by half as much each time."""
    before = lambda in_size, out_size, *, key: lambda v: 0.5 * jnp.pad(v[:-1], (1, 0))
    return gf.MaskedAutoregressive(KEY, shape=(size,), bijector=LOC, conditioner=before, **options)


def test_jacobi_sweeps_end_at_eight_epsilons_relative_to_one_and_the_size():
    """Single precision: eight epsilons are 2 ** -20, and sweep k + 1 changes an element by 2 ** -k."""
    y = jnp.zeros(24).at[0].set(1)
    x, sweeps = chain(24).inverse_and_sweeps(y)
    assert int(sweeps) == 21
    np.testing.assert_allclose(x, (-0.5) ** np.arange(24), atol=1e-6)
    assert int(chain(24, tolerance=0.1).inverse_and_sweeps(y)[1]) == 5  # 2 ** -4 is the first below
    assert int(chain(24, tolerance=0.0).inverse_and_sweeps(y)[1]) == 24  # as many as there are ranks
    large = jnp.full(40, 1e4)  # changes of 1e4 / 2 ** k, in elements of size 2/3 of 1e4
    assert int(chain(40).inverse_and_sweeps(large)[1]) == 22


def test_passes_are_ranks_of_consecutive_elements():
    made = gf.MaskedAutoregressive(KEY, shape=(2, 3), bijector=LOC, passes=3)
    assert made.order.tolist() == [[0, 0, 1], [1, 2, 2]]
    assert made.passes == 3
    assert gf.MaskedAutoregressive(KEY, shape=(2, 2), bijector=LOC).order.tolist() == [[0, 1], [2, 3]]


# --- scalar bijectors ---------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "near"), [(gf.MixtureGaussianCDF, 0.25), (gf.DeepSigmoid, 0.09)])
def test_default_mixtures_start_near_the_identity(kind, near):
    """The Gaussian mixture has mean 0 and variance 1; components are equal in weight and in scale."""
    x = np.linspace(-3, 3, 13).astype(np.float32)
    assert kind().means.size == 8
    for n in (2, 8):
        bijector = unwrap(kind(n))
        logits, means, log_scales = map(np.asarray, (bijector.logits, bijector.means, bijector.log_scales))
        np.testing.assert_allclose(logits, logits[0], rtol=1e-6)
        np.testing.assert_allclose(log_scales, log_scales[0], rtol=1e-5)
        assert (np.diff(means) > 0).all()
        z = jax.jit(jax.vmap(kind(n).transform))(x)
        assert np.abs(z - x).max() < near
        if kind is gf.MixtureGaussianCDF:
            np.testing.assert_allclose(means.mean(), 0, atol=1e-6)
            np.testing.assert_allclose((means**2 + np.exp(2 * log_scales)).mean(), 1, rtol=1e-5)


@pytest.mark.parametrize("kind", [gf.MixtureGaussianCDF, gf.DeepSigmoid])
def test_components_can_be_replaced_and_scales_beyond_the_bound_move_inside(kind):
    log_scales = np.array([-9.0, 0.5, 4.9, 9.0])
    weights, means = np.array([2.0, 4, 6, 8], np.float32), np.arange(4, dtype=np.float32)
    change = jax.jit(lambda *parts: unwrap(kind(4).with_components(*parts)))
    new = change(np.log(weights), means, np.exp(log_scales).astype(np.float32))
    found = np.asarray(new.log_scales)
    np.testing.assert_allclose(found[1:3], log_scales[1:3], rtol=1e-4)
    assert (np.abs(found) < 5).all()
    np.testing.assert_allclose(found[[0, 3]], [-5, 5], atol=0.05)
    logits = np.asarray(new.logits)
    np.testing.assert_allclose(np.exp(logits - logits[0]), [1, 2, 3, 4], rtol=1e-5)
    np.testing.assert_array_equal(new.means, means)


def test_splines_are_the_identity_at_first_with_eight_bins_on_four():
    x = np.linspace(-5, 5, 21).astype(np.float32)
    for spline in (gf.RQSpline(), gf.RQSpline(3, 2.0, min_width=0.2, min_slope=0.5)):
        z, log_det = jax.jit(jax.vmap(spline.transform_and_log_det))(x)
        np.testing.assert_allclose(z, x, atol=2e-6)
        np.testing.assert_allclose(log_det, 0, atol=2e-6)
    layer = gf.RQSplineCoupling(KEY, (2,), conditioner=constant(np.zeros(23)))  # 3 * 8 - 1 numbers
    for spline in (gf.RQSpline(), layer.bijector(jnp.zeros(23))):
        bent = eqx.tree_at(lambda s: s.heights, spline, jnp.arange(8.0))
        z = jax.jit(jax.vmap(bent.transform))(np.array([-4.1, -3.9, 3.9, 4.0, 4.1], np.float32))
        np.testing.assert_array_equal(np.asarray(z)[[0, 3, 4]], np.array([-4.1, 4.0, 4.1], np.float32))
        assert z[1] < -3.91
        assert z[2] < 3.89


def test_bins_of_a_spline_have_a_least_size_and_slopes_lie_between_a_number_and_its_inverse():
    narrow = jnp.array([-60.0, 0, 0, 0])
    first = -4 + 8 * 0.01  # where the first bin ends: a hundredth of the interval from its beginning

    @jax.jit
    def values(raw):
        wide = eqx.tree_at(lambda s: s.widths, gf.RQSpline(4), narrow)
        low = eqx.tree_at(lambda s: s.heights, gf.RQSpline(4), narrow)
        steep = lambda raw: eqx.tree_at(lambda s: s.slopes, gf.RQSpline(2), raw[None])
        slopes = jax.vmap(lambda raw: steep(raw).transform_and_log_det(jnp.zeros(()))[1])(raw)
        return wide.transform(first), low.inverse(first), slopes

    wide, low, slopes = values(jnp.array([-1e3, 0.0, 1e3]))
    np.testing.assert_allclose([wide, low], -2, atol=1e-4)
    np.testing.assert_allclose(np.exp(slopes), [0.1, 1, 10.48], rtol=1e-3)


# --- conditioners -------------------------------------------------------------------------------


def resnet(key, x):
    net = gf.conditioners.resnet(5, 2, activation=jnp.tanh)(3, 4, key=key)
    h = net.first(x)
    for inner, outer in net.blocks:
        change, gate = jnp.split(outer(jnp.tanh(inner(jnp.tanh(h)))), 2)
        h = h + change * jax.nn.sigmoid(gate)
    return net(x), net.last(jnp.tanh(h))


def shared_trunk(key, x):
    net = gf.conditioners.shared_trunk(5, 2, 3)(3, 4, key=key)
    (trunk, head), h = net.layers, x
    for layer in trunk.layers:  # after the narrow one too
        h = jax.nn.relu(layer(h))
    return net(x), head(h)


def attention(key, x):
    net = gf.conditioners.attention(4, 2, heads=2)(3, 5, key=key)
    tokens = x[:, None] * net.scale[None, :] + net.places
    for before, look, after, think in net.blocks:
        normal = jax.vmap(before)(tokens)
        tokens = tokens + look(normal, normal, normal)
        first, second = think.layers
        wide = jax.nn.gelu(jax.vmap(first)(jax.vmap(after)(tokens)))
        tokens = tokens + jax.vmap(second)(wide)
    return net(x), net.last(net.norm(tokens.mean(axis=0)))


def masked(key, x):
    degrees = ((0, 1, 2), (0, 1, 1, 0), (-1, 0, 1))
    net = gf.conditioners.MaskedMLP(degrees, activation=jnp.tanh, key=key)
    may_see = [[[1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 0, 0]], [[0] * 4, [1, 0, 0, 1], [1] * 4]]
    first, second = net.layers
    h = jnp.tanh((first.weight * np.array(may_see[0], np.float32)) @ x + first.bias)
    return net(x), (second.weight * np.array(may_see[1], np.float32)) @ h + second.bias


def lipschitz(key, x):
    """One hidden layer under a bound that is too wide to act; LipSwish begins with beta = 1/2."""
    net = gf.LipschitzMLP(key, in_size=3, out_size=2, lipschitz=0.99, nn_width=4, nn_depth=1, cond_dim=1)
    small = eqx.tree_at(lambda n: [w.args[0] for w in n.weights], net, replace_fn=lambda w: 0.1 * w)
    c, (first, second) = jnp.array([0.7]), (w.args[0] for w in small.weights)
    h = first @ x + net.biases[0] + net.cond_weight @ c
    return small(x, c), second @ (h * jax.nn.sigmoid(0.5 * h) / 1.1) + net.biases[1]


@pytest.mark.parametrize("both", [resnet, shared_trunk, attention, masked, lipschitz])
def test_networks_compute_what_their_formulas_say(both):
    """The network, and the same written out."""
    found, expected = jax.jit(both)(KEY, np.array([0.5, -1.5, 1.0], np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_networks_have_the_sizes_and_activations_of_their_defaults():
    make = lambda factory: built(lambda key: factory(3, 6, key=key))
    mlp, resnet = make(gf.conditioners.mlp()), make(gf.conditioners.resnet())
    trunk, head = make(gf.conditioners.shared_trunk()).layers
    attention = make(gf.conditioners.attention())
    made = built(lambda key: gf.conditioners.made()((0, 1), (-1, 0), key=key))
    ((_, look, _, think),) = attention.blocks
    assert hidden_sizes(mlp) == hidden_sizes(made) == hidden_sizes(trunk) == [64, 64]
    assert (len(resnet.blocks), resnet.first.out_features) == (2, 64)
    assert (head.in_features, head.out_features) == (8, 6)
    assert (attention.scale.size, look.num_heads, look.query_size) == (32, 4, 32)
    v = jnp.array([-0.5, 1.0])
    for network in (mlp, resnet, trunk, made):
        np.testing.assert_array_equal(network.activation(v), jax.nn.relu(v))
    np.testing.assert_allclose(think.activation(v), jax.nn.gelu(v), rtol=1e-6)


def test_hidden_units_of_a_masked_network_share_all_useful_degrees():
    made = lambda inputs: built(lambda key: gf.conditioners.made(6, 2)(inputs, (-1, 0, 1), key=key))
    assert made((0, 1, 2)).degrees[1:3] == ((0, 0, 0, 1, 1, 1),) * 2
    assert made((0, 1, 2, -1)).degrees[1:3] == ((-1, -1, 0, 0, 1, 1),) * 2  # with a condition


# --- linear maps --------------------------------------------------------------------------------


def test_a_key_draws_the_reflections_of_a_rotation():
    make = lambda key: gf.HouseholderRotation(2, (64,), key=key).params
    vectors = make(KEY)
    assert vectors.shape == (2, 64)
    assert bool((vectors != make(jr.key(1))).all())
    assert abs(float(vectors.mean())) < 0.3
    np.testing.assert_allclose(vectors.std(), 1, atol=0.2)


def test_the_product_of_reflections_begins_with_the_first():
    turn = gf.HouseholderRotation(2, (2,))
    turn = eqx.tree_at(lambda b: b.params, turn, jnp.array([[1.0, 0.0], [1.0, -1.0]]))
    # The first mirrors the first coordinate, the second exchanges the two.
    np.testing.assert_allclose(turn.transform(jnp.array([1.0, 2.0])), [2, -1], atol=1e-6)


# --- whole flows --------------------------------------------------------------------------------


def outline(make, *args, **options):
    """A flow without its values, its stacked layers, their names, and how many are stacked."""
    flow = built(make, *args, **options)
    (scan,) = find(flow, fb.Scan)
    kinds = (gf.ActNorm1D, fb.Flip, gf.LULinear, gf.HouseholderRotation, gf.Coupling)
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
        assert (names, count) == (["ActNorm1D", *between, "Coupling"], 3)
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
    assert (names, count) == (["ActNorm1D", "Residual"], 16)
    assert [bias.shape[-1] for bias in block.network.biases] == [64, 64, 3]
    assert (block.lipschitz, block.log_det.method, block.inverse_method) == (0.9, "exact", "newton")
    _, parts, names, count = outline(gf.residual_flow, 3, layers=2, actnorm=False, lipschitz=0.5)
    assert (names, count, parts[0].lipschitz) == (["Residual"], 2, 0.5)


def test_gaussianization_flows_have_the_parts_that_they_list():
    flow, (marginal, turn), names, count = outline(gf.gaussianization_flow, 3)
    assert (names, count) == (["MarginalGaussianization", "HouseholderRotation"], 8)
    assert turn.params.shape == (8, 3, 3)  # as many reflections as coordinates
    assert marginal.raw.shape == (8, 3, 3 * 8)
    first = find(flow, gf.ActNorm1D, fb.Scan)[0]
    assert isinstance(first, gf.ActNorm1D)
    layer = gf.MarginalGaussianization((2,))
    x = jnp.array([0.3, -1.5])
    both = jax.jit(lambda x: (layer.transform(x), jax.vmap(gf.MixtureGaussianCDF(8).transform)(x)))
    np.testing.assert_allclose(*both(x), rtol=1e-5)


# --- Gaussianization ----------------------------------------------------------------------------


@pytest.fixture(scope="module", name="iterated")
def _iterated():
    """Data, options and the result of a short run, of which four rows in forty are held out."""
    x = np.asarray(jr.normal(jr.key(10), (40, 2)))
    x = np.sign(x) * np.abs(x) ** 1.5  # gains of about 0.45, 0.15, 0.03, 0.09, -0.015
    options = {"layers": 5, "n_components": 2, "em_steps": 3, "tolerance": 0.0, "patience": 5}
    return x, options, gf.rbig(jr.key(1), x, **options)


def held_out(result, x, n_val):
    """The rows that did not set the ActNorm at the flow's beginning: the only subset that fits."""
    first = find(result.flow, gf.ActNorm1D)[0]
    mean = -np.asarray(first.bias, float) * np.exp(-np.asarray(first.log_scale, float))
    subsets = np.array(list(itertools.combinations(range(len(x)), n_val)))
    total = x.astype(float).sum(axis=0) - x.astype(float)[subsets].sum(axis=1)
    errors = np.abs(total / (len(x) - n_val) - mean).max(axis=1)
    assert errors.min() < 1e-5
    assert np.sort(errors)[1] > 20 * errors.min()
    return subsets[errors.argmin()]


def test_rbig_judges_each_layer_on_a_tenth_of_the_rows_that_it_does_not_fit(iterated):
    """Its gains are the differences of the held-out mean log-density from layer to layer."""
    x, _, result = iterated
    rows = held_out(result, x, 4)
    first = find(result.flow, gf.ActNorm1D)[0]
    (scan,) = find(result.flow, fb.Scan)

    @jax.jit
    def log_density(x):
        """After standardization, and after each further layer."""
        x = jax.vmap(first.transform)(x)
        normal = lambda z: jax.scipy.stats.norm.logpdf(z).sum(axis=-1)

        def step(state, arrays):
            z, log_det = state
            layer = eqx.combine(arrays, eqx.filter(scan.bijection, eqx.is_array, inverse=True))
            z, change = jax.vmap(layer.transform_and_log_det)(z)
            return (z, log_det + change), normal(z) + log_det + change

        _, after = jax.lax.scan(step, (x, 0 * x[:, 0]), eqx.filter(scan.bijection, eqx.is_array))
        return jnp.concatenate([normal(x)[None], after])

    gains = np.diff(np.asarray(log_density(x[rows])), axis=0)
    assert len(gains) == result.layers >= 1
    np.testing.assert_allclose(result.gain[: result.layers], gains.mean(axis=1), atol=1e-4)
    error = gains.std(axis=1) / np.sqrt(4)
    np.testing.assert_allclose(result.gain_error[: result.layers], error, rtol=1e-2, atol=1e-4)


def test_rbig_keeps_as_many_layers_as_were_best(iterated):
    _, options, result = iterated
    total = np.cumsum(result.gain)
    assert len(total) == options["layers"]
    assert result.stopped == "layers"
    assert result.layers == total.argmax() + 1 < options["layers"]
    assert result.layers != result.gain.argmax() + 1
    (turn,) = find(result.flow, gf.HouseholderRotation)
    assert turn.params.shape == (result.layers, 2, 2)


@pytest.mark.parametrize(("patience", "tolerance"), [(1, 1e9), (3, 1e9), (1, 0.0), (2, 0.0)])
def test_rbig_stops_when_the_last_layers_together_bring_less(iterated, patience, tolerance):
    x, options, full = iterated
    result = gf.rbig(jr.key(1), x, **options | {"patience": patience, "tolerance": tolerance})
    together = [full.gain[k - patience : k].sum() for k in range(patience + 1, 6)]
    stops = [k for k, gain in enumerate(together, patience + 1) if gain < tolerance]
    assert result.stopped == ("tolerance" if stops else "layers")
    assert len(result.gain) == (stops[0] if stops else 5)
    np.testing.assert_allclose(result.gain, full.gain[: len(result.gain)], rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "defaults"),
    [
        (gf.rbig, {"layers": 50, "n_components": 8, "rotation": "random", "tolerance": 0.01}),
        (gf.rbig, {"patience": 10, "val_fraction": 0.1, "em_steps": 50}),
        (gf.warm_start, {"rotation": None, "em_steps": 50}),
        (fit_mixture, {"steps": 50, "min_scale": 0.02}),
    ],
)
def test_iterative_gaussianization_keeps_its_defaults(function, defaults):
    """Read from the signature: a run of fifty layers would take long."""
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in defaults} == defaults


def test_a_fitted_mixture_keeps_a_background_and_least_scales():
    """Two far clusters, each narrower than the least scale: one component remains as wide as the sample."""
    x = np.concatenate([np.linspace(-1.001, -0.999, 30), np.linspace(4.999, 5.001, 10)]).astype(np.float32)
    log_weights, means, scales = (
        np.asarray(a, float) for a in jax.jit(lambda x: fit_mixture(x, 3, steps=30))(x)
    )
    std = x.std()
    np.testing.assert_allclose([means[0], scales[0]], [x.mean(), std], rtol=1e-5)
    assert 0.0098 < np.exp(log_weights[0]) < 0.0105
    np.testing.assert_allclose(scales[1:], 0.02 * std, rtol=1e-4)
    np.testing.assert_allclose(np.sort(means[1:]), [-1, 5], atol=0.05)
    np.testing.assert_allclose(np.exp(log_weights).sum(), 1, rtol=1e-5)


def test_a_warm_start_leaves_rotations_alone_unless_asked():
    x = np.asarray(jr.normal(jr.key(4), (40, 2)) @ jnp.array([[2.0, 1.0], [0.0, 0.5]]))
    marginal = gf.MarginalGaussianization((2,), bijector=gf.MixtureGaussianCDF(2))
    layers = fb.Chain([gf.HouseholderRotation(2, (2,), key=KEY), marginal])
    for rotation in (None, "pca"):
        warm = gf.warm_start(layers, x, rotation=rotation, em_steps=2)
        same = bool((warm.bijections[0].params == layers.bijections[0].params).all())
        assert same == (rotation is None)


# --- entropies ----------------------------------------------------------------------------------


def spacings(x):
    """Log-density at each point from eight order statistics to each side of it."""
    n, order = len(x), np.argsort(x)
    found = np.empty(n)
    for place, at in enumerate(order):
        low, high = max(place - 8, 0), min(place + 8, n - 1)
        found[at] = digamma(high - low) - digamma(n + 1) - np.log(x[order[high]] - x[order[low]])
    return found


def neighbours(x, k=4):
    """Log-density at each point of the plane from its k-th nearest neighbour among uncorrelated columns."""
    factor = np.linalg.cholesky(np.cov(x.T, bias=True))
    unit = x @ np.linalg.inv(factor).T
    distance = np.sort(np.linalg.norm(unit[:, None] - unit[None, :], axis=2), axis=1)[:, k]
    volume = np.log(np.pi) + 2 * np.log(distance) + np.log(np.diag(factor)).sum()
    return digamma(k) - digamma(len(x)) - volume


def test_entropies_follow_their_estimators_formulas():
    x = np.random.default_rng(0).normal(size=(40, 2)) @ [[1.0, 0.5], [0.0, 2.0]] + [3.0, -1.0]
    column, joint, closer = spacings(x[:, 0]), neighbours(x), neighbours(x, 2)
    marginals = column + spacings(x[:, 1])
    gaussian = lambda rows: multivariate_normal(rows.mean(axis=0), np.cov(rows.T, bias=True)).logpdf(rows)
    for estimate, terms in (
        (gf.entropy(x[:, 0]), -column),
        (gf.entropy(x[:, :1]), -column),
        (gf.entropy(x), -joint),
        (gf.entropy(x, k=2), -closer),
        (gf.negentropy(x[:, 0]), column - gaussian(x[:, :1])),
        (gf.negentropy(x), joint - gaussian(x)),
        (gf.negentropy(x, k=2), closer - gaussian(x)),
        (gf.total_correlation(x), joint - marginals),
        (gf.total_correlation(x, k=2), closer - marginals),
        (gf.total_correlation(x, joint_entropy=1.5), -marginals - 1.5),
    ):
        np.testing.assert_allclose(estimate, (terms.mean(), terms.std() / np.sqrt(40)), rtol=1e-6)


def test_the_divergence_draws_ten_thousand_samples():
    p = gf.targets.gaussian_mixture([[0.0, 0.0]], 1.0)
    q = gf.targets.gaussian_mixture([[1.0, 0.0]], 1.0)
    found = gf.kl_divergence(p, q, KEY)
    assert found == gf.kl_divergence(p, q, KEY, 10_000)
    assert found != gf.kl_divergence(p, q, KEY, 9_000)
    # log p - log q = 1/2 - x_1: its mean is 1/2, its deviation 1.
    np.testing.assert_allclose(found.standard_error, 0.01, rtol=0.05)
    assert abs(found.value - 0.5) < 4 * found.standard_error


# --- residual blocks ----------------------------------------------------------------------------


def test_residual_blocks_have_their_default_terms_and_inverses():
    block = lambda **options: built(gf.Residual, **({"shape": (2,)} | options))
    assert (block().log_det.method, block().inverse_method) == ("exact", "newton")
    assert block(log_det="hutchinson").log_det.terms == 10
    assert block(log_det="roulette").log_det.terms == 4
    assert block(log_det="roulette", terms=0).log_det.terms == 0
    assert block(shape=(32,)).inverse_method == "newton"
    assert block(shape=(33,), log_det="roulette").inverse_method == "banach"
    assert block(shape=(32,), inverse="banach").inverse_method == "banach"


def test_another_log_determinant_has_its_own_terms_and_a_key_changes_none():
    block = gf.Residual(KEY, shape=(2,), nn_width=4, log_det="hutchinson", terms=7)
    terms = lambda *args, **options: gf.with_log_det(block, *args, **options).log_det.terms
    assert terms(key=jr.key(1)) == terms("hutchinson") == terms() == 7
    assert terms("roulette") == 4
    assert terms("roulette", terms=2) == terms(terms=2) == 2
    keyed = gf.with_log_det(block, key=jr.key(1))
    assert keyed.log_det.key is not None
    assert gf.with_log_det(keyed).log_det.key is None  # the default is none
    is_random = gf.residual.is_random
    assert (is_random(keyed), is_random(gf.with_log_det(keyed, "exact"))) == (True, False)


class Slope(eqx.Module):
    """g(x) = a x in one dimension, where random signs cancel and each term of the series is exact."""

    a: jax.Array

    def __call__(self, x, condition=None):
        return self.a * x


def series(a, count, terms, keep):
    """The two series of `log_det_estimate` with `count` terms, at J = a."""
    weight = lambda k: keep ** -max(k - terms, 0) if keep else 1.0
    value = sum((-1) ** (k + 1) / k * weight(k) * a**k for k in range(1, count + 1))
    return value, sum((-1) ** k * weight(k) * a**k for k in range(count + 1))


@pytest.mark.parametrize(("terms", "keep"), [(3, None), (2, 0.5), (0, 0.5)])
def test_estimates_of_the_log_determinant_are_the_series_that_they_state(terms, keep):
    """Terms after the certain ones go on with probability `keep`, and are divided by their own."""
    estimate = lambda a, key: gf.residual.log_det_estimate(Slope(a), jnp.ones(1), key, terms=terms, keep=keep)
    both = jax.jit(jax.vmap(jax.value_and_grad(estimate, has_aux=True), (None, 0)))
    (values, counts), slopes = jax.tree.map(np.asarray, both(jnp.float32(0.4), jr.split(KEY, 1000)))
    for count in np.unique(counts):
        value, slope = series(0.4, int(count), terms, keep)
        np.testing.assert_allclose(values[counts == count], value, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(slopes[counts == count], slope, rtol=1e-4)
    if keep is None:
        assert (counts == terms).all()
    else:
        assert counts.min() == terms
        np.testing.assert_allclose(counts.mean() - terms, keep / (1 - keep), atol=0.15)


def test_each_point_has_noise_of_its_own_and_keys_change_it():
    block = gf.Residual(KEY, shape=(2,), nn_width=4, log_det="hutchinson", terms=1)
    flow = fd.Transformed(fd.Normal(jnp.zeros(2)), fb.Invert(block))
    draw = jax.jit(lambda key: gf.estimate_log_prob(flow, jnp.ones((8, 2)), key))
    found = np.asarray(draw(KEY))
    assert len(np.unique(found)) > 1
    assert (found != np.asarray(draw(jr.key(1)))).any()


def test_the_inverse_reports_a_bound_that_follows_from_what_is_left():
    """Where the residual is r, the error is at most the norm of r over 1 - L."""
    block = gf.Residual(KEY, shape=(2,), lipschitz=0.75, nn_width=4, inverse="banach")
    unbounded = lambda x, condition=None: 0.75 * x + 1e6 * jnp.sign(x - 1)  # no fixed point: it stops at once
    block = eqx.tree_at(
        lambda b: b.network, block, Plain(0.75, unbounded), is_leaf=lambda n: n is block.network
    )
    y = jnp.array([3.0, 4.0])
    x, _, bound = block.inverse_and_steps(y)
    left = np.linalg.norm(x + unbounded(x) - y)
    np.testing.assert_allclose(bound, left / (1 - 0.75), rtol=1e-6)


class Plain(eqx.Module):
    """A network that is a given function."""

    lipschitz: float = eqx.field(static=True)
    function: object = eqx.field(static=True)

    def __call__(self, x, condition=None):
        return self.function(x, condition)


# --- numerics -----------------------------------------------------------------------------------


def test_half_precision_is_computed_in_single():
    v = jnp.array([0.0, 0.5, 3.0, 100.0], jnp.bfloat16)
    both = jax.jit(lambda v: (gf.numerics.mills_ratio(v), gf.numerics.mills_ratio(v.astype(jnp.float32))))
    half, single = both(v)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, single.astype(jnp.bfloat16))


# --- the printed check --------------------------------------------------------------------------


class Linear(gf.Bijection):
    """z = A x, plus the condition's sum; errors can be added to its inverse and its log-determinants."""

    matrix: tuple[tuple[float, ...], ...] = eqx.field(static=True)
    inverse_error: float = eqx.field(static=True, default=0.0)
    log_det_error: float = eqx.field(static=True, default=0.0)
    cond_shape: tuple[int, ...] | None = eqx.field(static=True, default=None)

    @property
    def shape(self):
        return (len(self.matrix),)

    def _parts(self, dtype, condition):
        log_det = np.linalg.slogdet(np.array(self.matrix))[1] + self.log_det_error
        return jnp.asarray(log_det, dtype), jnp.zeros(self.shape) if condition is None else condition.sum()

    def transform_and_log_det(self, x, condition=None):
        log_det, shift = self._parts(x.dtype, condition)
        return jnp.asarray(self.matrix, x.dtype) @ x + shift, log_det

    def inverse_and_log_det(self, y, condition=None):
        log_det, shift = self._parts(y.dtype, condition)
        inverse = np.linalg.inv(np.array(self.matrix))
        return jnp.asarray(inverse, y.dtype) @ (y - shift) + self.inverse_error, -log_det


DOUBLE = ((2.0, 0.0), (0.0, 2.0))
EPSILON = float(np.finfo(np.float32).eps)


def passes(bijection, x=None, **options):
    """Whether the check passes, by default at the origin."""
    x = np.zeros(bijection.shape, np.float32) if x is None else x
    try:
        return gf.check_bijection(bijection, x, **options).ok
    except gf.CheckError:
        return False


def test_the_bounds_are_those_of_the_formula():
    """For z = 2 x at the origin: 200 epsilons for x, and (1 + log 4 + 2) hundred for the log-determinant."""
    assert passes(Linear(DOUBLE, inverse_error=190 * EPSILON))
    assert not passes(Linear(DOUBLE, inverse_error=210 * EPSILON))
    allowed = 100 * (1 + math.log(4) + 2) * EPSILON
    assert passes(Linear(DOUBLE, log_det_error=0.95 * allowed))
    assert not passes(Linear(DOUBLE, log_det_error=1.1 * allowed))
    assert passes(Linear(DOUBLE, log_det_error=1.1 * allowed), atol=2 * allowed)
    assert not passes(Linear(DOUBLE, inverse_error=20 * EPSILON), atol=10 * EPSILON)


def test_a_bound_above_a_hundredth_of_the_figure_fails():
    """z_1 = x_1 + K x_2: for z_1 at the origin 3 + 4 K hundred epsilons are allowed, 0.0072 and 0.014."""
    shear = lambda k: Linear(((1.0, k), (0.0, 1.0)))
    assert passes(shear(150.0))
    assert not passes(shear(300.0))
    assert passes(shear(300.0), atol=1e-3)  # a bound that is given is taken


def test_the_report_prints_bounds_rounded_up_and_permutations_of_twelve(capsys):
    report = gf.check_bijection(Linear(DOUBLE), np.zeros(2, np.float32))
    assert [line.bound for line in report.lines[:4]] == [1e-4] * 4
    out = capsys.readouterr().out
    assert out.startswith(
        "Linear, event (2,), 1 point, float32\n  round trip x -> z -> x   ≈ 0.0e+00  ≤ 0.0001  ok\n"
    )
    for size in (12, 13):
        matrix = np.eye(size)
        matrix[[0, -1], 1] = 1  # the first and the last read the second
        report = gf.check_bijection(Linear(tuple(map(tuple, matrix.tolist()))), np.zeros(size, np.float32))
        assert report.permutation == (*range(1, size - 1), 0, size - 1)
        assert (str(list(report.permutation)) in str(report)) == (size == 12)


def test_one_condition_serves_all_points_and_a_batch_gives_each_its_own():
    layer = Linear(DOUBLE, cond_shape=(3,))
    x = np.ones((4, 2), np.float32)
    assert passes(layer, x, condition=np.ones(3, np.float32))
    assert passes(layer, x, condition=np.ones((4, 3), np.float32))
    with pytest.raises(ValueError, match="`condition` must"):
        gf.check_bijection(layer, x, np.ones((2, 3), np.float32))


class Sometimes(gf.Bijection):
    """z = x, but where x_1 > 0 the second coordinate depends on the first."""

    passive: tuple[bool, ...] | None = eqx.field(static=True, default=None)
    shape: tuple[int, ...] = eqx.field(static=True, default=(2,))
    cond_shape: None = eqx.field(static=True, default=None)

    @property
    def mask(self):
        return None if self.passive is None else np.array(self.passive)

    def transform_and_log_det(self, x, condition=None):
        change = jnp.where(x[0] > 0, x[0], 0)
        return x + jnp.stack([0 * change, change]), jnp.zeros((), x.dtype)

    def inverse_and_log_det(self, y, condition=None):
        change = jnp.where(y[0] > 0, y[0], 0)
        return y - jnp.stack([0 * change, change]), jnp.zeros((), y.dtype)


def test_the_structure_is_judged_at_every_point():
    x = np.array([[-1.0, 2.0], [1.0, 2.0]], np.float32)
    assert gf.check_bijection(Sometimes(), x[:1])["Jacobian"] == "diagonal"
    assert gf.check_bijection(Sometimes(), x)["Jacobian"] == "lower triangular"
    changed = Sometimes((False, True))
    assert passes(changed, x[:1])
    assert not passes(changed, x)


def test_a_measured_line_shows_number_unit_and_bounds(capsys):
    gf.check("speed", 1.25, at_least=1, at_most=2, unit="nats", digits=".2f")
    gf.check("largest error", 2.5e-7, at_most=1e-6)
    assert capsys.readouterr().out == (
        "speed                    ≈ 1.25 nats  ≥ 1, ≤ 2  ok\n"
        "largest error            ≈ 2.5e-07  ≤ 1e-06  ok\n"
    )


# --- the faults that these tests notice ---------------------------------------------------------


def test_the_table_of_faults_against_the_docstrings_is_current():
    """Each still fits its file, has a name of its own, and is noticed by the test file named for it."""
    names = [fault.name for fault in (*mutants.MUTANTS, *mutants.DOCUMENTED)]
    assert len(set(names)) == len(names)
    for fault in mutants.DOCUMENTED:
        source = (mutants.ROOT / "gauss_flows" / fault.file).read_text()
        assert source.count(fault.old) == 1, fault.name
    rows = mutants.read(mutants.DOCUMENTED_TABLE)
    assert list(rows) == [fault.name for fault in mutants.DOCUMENTED], "run `make mutants`"
    named = {fault.name: fault.tests.split()[0] for fault in mutants.DOCUMENTED}
    assert [name for name in named if not rows[name]["tests"].startswith(f"{named[name]}::")] == []
