"""Tests of ``gauss_flows.image``."""

import functools

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.extend.core
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy
from cases import channel_coupling, channel_pattern, coupling_pattern
from network_support import KEY, built, find, moved

import gauss_flows as gf
from gauss_flows.image import _Shuffle, squeeze, unsqueeze

pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.cache
def small(mixing):
    return gf.image_flow(KEY, (4, 4, 1), steps=(2, 1), mixing=mixing, nn_width=4, cond_dim=2)


def numbers(seed, *shape):
    """JAX's generator would compile a program for each shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@eqx.filter_jit
def latent_and_log_prob(flow, x, c):
    return jax.vmap(flow.bijection.inverse)(x, c), jax.vmap(flow.log_prob)(x, c)


def test_squeeze_matches_a_drawn_example():
    picture = np.arange(16).reshape(4, 4, 1)
    assert squeeze(picture).tolist() == [
        [[0, 1, 4, 5], [2, 3, 6, 7]],
        [[8, 9, 12, 13], [10, 11, 14, 15]],
    ]
    image = np.arange(2 * 6 * 3).reshape(2, 6, 3)
    squeezed = squeeze(image)
    for i, j, w, c in np.ndindex(2, 2, 3, 3):
        assert squeezed[0, w, (2 * i + j) * 3 + c] == image[i, 2 * w + j, c]
    np.testing.assert_array_equal(unsqueeze(squeezed), image)
    np.testing.assert_array_equal(squeeze(unsqueeze(squeezed)), squeezed)
    mask = unsqueeze(gf.masks.channel(1, 1, 4))
    assert isinstance(mask, np.ndarray)
    assert mask[:, :, 0].tolist() == [[True, True], [False, False]]
    np.testing.assert_array_equal(jax.jit(squeeze)(image), squeezed)


def test_squeeze_and_split_are_what_their_formulas_say():
    inner = channel_coupling(KEY, 2, 2, 4)
    x = numbers(1, 4, 4, 2)
    split = moved(gf.Split(KEY, gf.Squeeze(inner)), 2)

    @jax.jit
    def both(x):
        (z, log_det), (a, b) = split.transform_and_log_det(x), (x[..., :1], x[..., 1:])
        f, change = split.bijection.bijection.transform_and_log_det(squeeze(a))
        out = split.conditioner(a.ravel()).reshape(4, 4, 1, 2)
        s = 2 * jnp.tanh(out[..., 1] / 2)
        by_hand = jnp.concatenate([unsqueeze(f), (b - out[..., 0]) * jnp.exp(-s)], -1), change - s.sum()
        return (z, log_det), by_hand

    for found, expected in zip(*both(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def pattern(part, shape):
    """The entries of the flat Jacobian that may differ from zero, from the structure alone."""
    size = int(np.prod(shape))
    if isinstance(part, gf.Squeeze):
        place = squeeze(np.arange(size).reshape(shape)).ravel()
        found = np.zeros((size, size), bool)
        found[np.ix_(place, place)] = pattern(part.bijection, part.bijection.shape)
        return found
    if isinstance(part, gf.Split):
        places = np.arange(size).reshape(shape)
        kept, leaving = (half.ravel() for half in np.split(places, 2, axis=-1))
        found = np.eye(size, dtype=bool)
        found[np.ix_(kept, kept)] = pattern(part.bijection, part.bijection.shape)
        found[np.ix_(leaving, kept)] = True  # the network spans 5×5 pixels, more than there are
        return found
    if isinstance(part, gf.Scan):
        arrays, rest = eqx.partition(part.bijection, eqx.is_array)
        count = jax.tree.leaves(arrays)[0].shape[0]
        layers = [eqx.combine(jax.tree.map(lambda a, i=i: a[i], arrays), rest) for i in range(count)]
        return pattern(fb.Chain(layers), shape)
    if isinstance(part, fb.Chain):
        found = np.eye(size)
        for layer in part.bijections:
            found = pattern(layer, shape).astype(float) @ found
        return found > 0
    if isinstance(part, gf.Conv1x1):
        return channel_pattern(size // shape[-1], shape[-1])
    if isinstance(part, _Shuffle):
        pixels = np.eye(size // shape[-1])
        return np.kron(pixels, np.eye(shape[-1])[np.asarray(part.permutation)]) > 0
    return coupling_pattern(part.mask) if isinstance(part, gf.Coupling) else np.eye(size, dtype=bool)


@pytest.mark.parametrize("mixing", ["permutation", pytest.param("conv1x1", marks=pytest.mark.nightly)])
def test_the_zeros_of_the_jacobian_follow_from_the_structure(mixing):
    """Two levels on 4×4 pixels: the Jacobian's zeros are those of the Boolean product of the layers."""
    bijection = moved(small(mixing), 1).bijection.bijection
    run = lambda x: bijection.transform(x, jnp.ones(2))
    jacobian = jax.jit(jax.jacfwd(run))(numbers(2, 4, 4, 1))
    expected = pattern(bijection, (4, 4, 1))
    np.testing.assert_array_equal(jacobian.reshape(16, 16) != 0, expected)
    assert bool(expected.all()) == (mixing == "conv1x1")


def test_an_image_flow_has_the_parts_that_it_lists():
    flow = built(gf.image_flow, (8, 8, 1))
    first = flow.bijection.bijection
    here, split = first.bijection.bijections
    second = split.bijection
    for level, count, shape in ((here, 6, (4, 4, 4)), (second.bijection, 4, (2, 2, 8))):
        norm, mix, coupling = level.bijection.bijections
        assert [type(part) for part in (norm, mix, coupling)] == [gf.ActNorm, gf.Conv1x1, gf.Coupling]
        assert (norm.shape, norm.log_scale.shape) == (shape, (count, 1, 1, shape[-1]))
        np.testing.assert_array_equal(coupling.mask, gf.masks.channel(*shape))
        assert coupling.conditioner.enter.shape == (count, 3, 3, shape[-1] // 2, 32)
        assert coupling.conditioner.leave.shape == (count, 3, 3, 32, shape[-1])
    assert (first.shape, split.shape, second.shape) == ((8, 8, 1), (4, 4, 4), (4, 4, 2))
    assert split.conditioner.enter.shape == (3, 3, 2, 32)
    options = {"steps": (3,), "mixing": "permutation", "actnorm": False, "cond_dim": 2, "nn_width": 8}
    flow = built(gf.image_flow, (2, 4, 3), **options)
    (mix, coupling), (scan,) = find(flow, _Shuffle, gf.Coupling), find(flow, gf.Scan)
    assert (len(scan.bijection.bijections), mix.permutation.shape) == (2, (3, 12))
    assert (coupling.cond_shape, coupling.conditioner.condition.shape) == ((2,), (3, 2, 8))
    dense = built(
        gf.image_flow, (4, 4, 1), steps=(2, 1), bijector=gf.RQSpline(4), conditioner=gf.conditioners.mlp(8, 1)
    )
    assert [network.out_size for network in find(dense, eqx.nn.MLP)] == [8 * 11, 4 * 11, 16]


def test_a_new_image_flow_is_the_standard_normal():
    """Up to rotations or permutations, no two of which are equal."""
    x = numbers(1, 256, 4, 4, 1)
    normal = scipy.stats.norm.logpdf(x).sum((1, 2, 3))
    log_prob = latent_and_log_prob(small("conv1x1"), x, jnp.ones((256, 2)))[1]
    np.testing.assert_allclose(log_prob, normal, rtol=1e-5)
    first, second = find(small("permutation"), _Shuffle)[0].permutation
    assert first.tolist() != second.tolist()
    first, second = find(small("conv1x1"), gf.Conv1x1)[0].upper
    assert bool((first != second).any())


def test_a_conditional_image_flow_uses_its_condition_at_every_level():
    """And no weights make a point within 1e6 overflow."""
    flow = moved(small("conv1x1"), 1)
    x, c, run = numbers(2, 256, 4, 4, 1), numbers(3, 256, 2), latent_and_log_prob
    here, there = (np.asarray(run(flow, x, condition)[0])[:3] for condition in (c, c + 1))
    squeezed = squeeze((here != there).any(axis=0))
    leaving, inside = squeezed[..., 2:], squeeze(squeezed[..., :2])[..., 4:]
    assert leaving.all()
    assert inside.all()
    grow = lambda network: jax.tree.map(
        lambda a: jnp.asarray(5 * np.asarray(a)) if eqx.is_array(a) else a, network
    )
    wild = eqx.tree_at(lambda flow: find(flow, gf.conditioners.ConvNet), flow, replace_fn=grow)
    assert bool(jnp.isfinite(run(wild, 1e6 * x, c)[1]).all())


def equations(jaxpr):
    """The number of equations, those inside of loops and programs too."""
    return sum(
        1 + sum(equations(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params))
        for equation in jaxpr.eqns
    )


def test_compilation_does_not_grow_with_the_steps():
    counts = []
    for steps in ((1, 1), (12, 12)):
        flow = built(gf.image_flow, (8, 8, 1), steps=steps)
        arrays, rest = eqx.partition(flow, lambda leaf: hasattr(leaf, "shape"))
        x = jax.ShapeDtypeStruct((8, 8, 1), jnp.float32)
        loss = lambda arrays, x, rest=rest: eqx.combine(arrays, rest).log_prob(x)
        trainable, others = eqx.partition(arrays, lambda a: jnp.issubdtype(a.dtype, jnp.floating))
        run = jax.value_and_grad(lambda t, o, x, loss=loss: loss(eqx.combine(t, o), x))
        counts.append(equations(jax.make_jaxpr(run)(trainable, others, x).jaxpr))
    assert counts[0] == counts[1] > 100


def standardized(z):
    rows = np.asarray(z).reshape(-1, z.shape[-1])
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(rows.std(axis=0), 1, atol=1e-4)


def multi_scale():
    """An ActNorm before a split, and one after it on half of the channels."""
    norm = lambda *shape: gf.ActNorm(shape, per_channel=True)
    split = moved(gf.Split(KEY, gf.Squeeze(gf.Conv1x1(KEY, (1, 1, 8)))), 1)
    inner = gf.Squeeze(fb.Chain([norm(1, 1, 8), split.bijection.bijection]))
    split = eqx.tree_at(lambda s: s.bijection, split, inner)
    return gf.Squeeze(fb.Chain([norm(2, 2, 4), split]))


def test_data_sets_the_layers_inside_of_squeeze_and_split():
    x = 5 + numbers(2, 200, 4, 4, 1) * np.arange(1, 5, dtype=np.float32)[None, :, None, None]
    flow = gf.Transformed(gf.standard_normal((4, 4, 1)), fb.Invert(multi_scale()))
    norm, split = gf.data_init(flow, x).bijection.bijection.bijection.bijections
    inner_norm = split.bijection.bijection.bijections[0]

    @jax.jit
    @jax.vmap
    def on_the_way(x):
        outside = norm.transform(squeeze(x))
        return outside, inner_norm.transform(squeeze(outside[..., :2]))

    for z in on_the_way(x):
        standardized(z)


def test_data_sets_the_layers_of_an_inverted_split_from_the_inside_out():
    x = 5 + 3 * numbers(2, 200, 4, 4, 1)
    new = gf.data_init(fb.Invert(multi_scale()), x).bijection
    norm, split = new.bijection.bijections
    inner_norm, last = split.bijection.bijection.bijections

    @jax.jit
    @jax.vmap
    def on_the_way(y):
        y = squeeze(y)
        return inner_norm.inverse(last.inverse(squeeze(y[..., :2]))), norm.inverse(split.inverse(y))

    for z in on_the_way(x):
        standardized(z)


def test_rows_that_a_split_loses_are_named_and_a_warm_start_is_refused():
    x = np.array(numbers(2, 20, 4, 4, 1))
    bad = gf.Squeeze(fb.Chain([fb.Exp((2, 2, 4)), multi_scale().bijection.bijections[1]]))
    x[7] = 200.0
    with pytest.raises(ValueError, match=r"1 of 20 rows have none, the first of them row 7"):
        gf.data_init(bad, x)
    mixture = {"bijector": gf.MixtureGaussianCDF(2), "conditioner": gf.conditioners.conv(2, 2, 4)}
    coupling = gf.Coupling(KEY, (2, 2, 4), mask=gf.masks.channel(2, 2, 4), **mixture)
    with pytest.raises(ValueError, match="`conditioner` must end in a dense layer with a bias; got ConvNet"):
        gf.warm_start(gf.Squeeze(coupling), x[:7], em_steps=2)


def test_a_few_steps_of_training_improve_an_image_flow():
    new = small("conv1x1")
    x, c = jnp.asarray(np.cumsum(numbers(1, 256, 4, 4, 1), axis=1)), jnp.ones((256, 2))
    options = {"steps": 20, "batch_size": 32, "learning_rate": 1e-2, "progress": False}
    result = gf.fit(jr.key(2), new, x, condition=c, **options)
    log_prob = lambda flow, x: np.asarray(latent_and_log_prob(flow, x, c)[1])
    assert log_prob(result.flow, x).mean() > log_prob(new, x).mean() + 1
    drawn, found = result.flow.sample_and_log_prob(jr.key(3), condition=c)
    np.testing.assert_allclose(found, log_prob(result.flow, drawn), rtol=1e-4, atol=1e-3)


def conditional():
    return channel_coupling(KEY, 2, 2, 4, cond_dim=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: squeeze(np.ones((3, 4, 1))), r"`x` must have shape .* H and W even; got \(3, 4, 1\)"),
        (lambda: squeeze(np.ones((4, 4))), r"`x` must have shape \(H, W, C\).*; got \(4, 4\)"),
        (lambda: unsqueeze(np.ones((2, 2, 6))), r"`y` must have shape \(H, W, 4C\).*; got \(2, 2, 6\)"),
        (lambda: gf.Squeeze(gf.ActNorm((2, 2, 6))), "`bijection` must act on 4C channels.*; it acts on 6"),
        (lambda: gf.Squeeze(gf.ActNorm((4,))), r"`bijection` must act on images .* shape is \(4,\)"),
        (lambda: gf.Squeeze(jnp.tanh), "`bijection` must be a flowjax bijection; got "),
        (lambda: gf.Split(KEY, jnp.tanh), "`bijection` must be a flowjax bijection; got "),
        (lambda: gf.Split(KEY, gf.ActNorm((2, 2))), r"`bijection` must act on images .* shape is \(2, 2\)"),
        (lambda: gf.Split(0, gf.ActNorm((2, 2, 1))), "`key` must be a random key.*got 0"),
        (lambda: gf.Split(KEY, gf.ActNorm((2, 2, 1)), cond_dim=0), "`cond_dim` must be a whole number"),
        (
            lambda: gf.Split(KEY, conditional(), cond_dim=3),
            r"`bijection` must have a condition of shape \(3,\), or none; it has \(2,\)",
        ),
        (
            lambda: gf.Split(KEY, gf.ActNorm((2, 2, 1)), conditioner=gf.conditioners.conv(3, 1)),
            "number of its inputs.* multiple of 3; got 4",
        ),
        (lambda: gf.masks.channel(2, 2, 1), "`channels` must be a whole number of at least 2; got 1"),
        (lambda: gf.image_flow(KEY, (6, 8, 1)), r"`shape` must have .* divisible by 4, .*got \(6, 8, 1\)"),
        (lambda: gf.image_flow(KEY, (8, 8)), r"`shape` must be that of an image, \(H, W, C\); got \(8, 8\)"),
        (lambda: gf.image_flow(KEY, (8, 8, 1), steps=3), "`steps` must have one whole number .*; got 3"),
        (lambda: gf.image_flow(KEY, (8, 8, 1), steps=()), r"`steps` must have one whole number .*; got \(\)"),
        (lambda: gf.image_flow(KEY, (8, 8, 1), steps=(2, 0)), "`steps` must be a whole number of at least 1"),
        (lambda: gf.image_flow(KEY, (8, 8, 1), mixing="lu"), "`mixing` must be one of .*; got 'lu'"),
        (
            lambda: gf.image_flow(KEY, (8, 8, 1), cond_dim=0),
            "`cond_dim` must be a whole number of at least 1",
        ),
        (lambda: gf.image_flow(0, (8, 8, 1)), "`key` must be a random key.*got 0"),
        (
            lambda: small("conv1x1").log_prob(jnp.ones((3, 8, 8, 1)), jnp.ones(2)),
            r"The last axes of `x` must have shape \(4, 4, 1\); its shape is \(3, 8, 8, 1\)",
        ),
        (
            lambda: gf.reachability([gf.masks.channel(2, 2, 4), gf.masks.channel(1, 1, 8)]),
            "`masks` must hold .* of one shape",
        ),
    ],
)
def test_what_is_no_image_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "value"), [("nn_width", 0), ("nn_width", "8"), ("cond_dim", (10,)), ("cond_dim", 2.0)]
)
def test_sizes_of_an_image_flow_are_named_as_they_were_given(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number of at least 1; got"):
        gf.image_flow(KEY, (4, 4, 1), steps=(1,), **{name: value})
