"""One contract for every public bijection. To add a layer, add a case."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from flowjax.distributions import Normal, Transformed
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from paramax import NonTrainable, unwrap

import gauss_flows as gf
from gauss_flows.base import split_parameters


@dataclass
class Case:
    make: Callable  # key -> bijection
    shape: tuple[int, ...]
    cond_dim: int | None = None
    pattern: np.ndarray | None = None  # entries of the flat Jacobian that may differ from 0
    far: tuple[float, ...] = field(default=(10.0, 30.0))  # standard deviations


def coupling_pattern(mask) -> np.ndarray:
    """Active rows read every passive column and themselves; passive rows only themselves."""
    passive = np.asarray(mask).ravel()
    return np.eye(len(passive), dtype=bool) | (~passive[:, None] & passive[None, :])


def order_pattern(order) -> np.ndarray:
    """Each element reads itself and the elements of smaller rank."""
    ranks = np.asarray(order).ravel()
    return np.eye(len(ranks), dtype=bool) | (ranks[None, :] < ranks[:, None])


def _random_mask(seed, shape):
    size = int(np.prod(shape))
    return np.random.default_rng(seed).permutation(np.arange(size) < size // 2).reshape(shape)


def bent_lu(key):
    numbers = 0.3 * jr.normal(key, (3, 4, 4))
    where = lambda b: (b.lower, b.upper, b.bias)
    return eqx.tree_at(where, gf.LULinear((4,)), (numbers[0], numbers[1], numbers[2, 0]))


def bent_actnorm(key):
    numbers = 0.5 * jr.normal(key, (2, 2, 3))
    return eqx.tree_at(lambda b: (b.log_scale, b.bias), gf.ActNorm1D((2, 3)), tuple(numbers))


def bent_marginals(key):
    layer = gf.MarginalGaussianization((3,), bijector=gf.MixtureGaussianCDF(3))
    return eqx.tree_at(lambda b: b.raw, layer, 0.5 * jr.normal(key, layer.raw.shape))


def steep(block):
    """The weights so large that every layer is at its bound."""
    where = lambda b: [weight.args[0] for weight in b.network.weights]
    return eqx.tree_at(where, block, [10 * weight for weight in where(block)])


SPLINE = fb.RationalQuadraticSpline(knots=4, interval=3)
MASK_1, MASK_3 = _random_mask(0, (5,)), _random_mask(1, (2, 3, 2))
ORDER_1 = np.array([3, 0, 4, 1, 2])
ORDER_3 = np.array([4, 4, 0, 2, 9, 4, 0, 2, 2, 4, 9, 0]).reshape(2, 3, 2)

CASES: dict[str, Case] = {
    "Affine": Case(lambda k: gf.Affine(0.5, 2.0), ()),
    "MixtureGaussianCDF": Case(lambda k: gf.MixtureGaussianCDF(), ()),
    "MixtureGaussianCDF, one": Case(lambda k: gf.MixtureGaussianCDF(1), ()),
    "MixtureGaussianCDF, given": Case(
        lambda k: gf.MixtureGaussianCDF(3, weights=[1, 2, 3], means=[-1.5, 0, 2], scales=[0.5, 1, 0.7]),
        (),
    ),
    "Coupling": Case(
        lambda k: gf.Coupling(k, shape=(5,), bijector=fb.Loc(0.0), mask=MASK_1, cond_dim=2),
        (5,),
        cond_dim=2,
        pattern=coupling_pattern(MASK_1),
    ),
    "Coupling, frozen spline": Case(  # NonTrainable and integer leaves in the bijector
        lambda k: gf.Coupling(k, shape=(2, 3, 2), mask=MASK_3, bijector=SPLINE),
        (2, 3, 2),
        pattern=coupling_pattern(MASK_3),
    ),
    "AffineCoupling": Case(
        lambda k: gf.AffineCoupling(k, (5,), mask=MASK_1, nn_width=16),
        (5,),
        pattern=coupling_pattern(MASK_1),
    ),
    "AffineCoupling, rank 3": Case(
        lambda k: gf.AffineCoupling(k, (2, 3, 2), mask=MASK_3, cond_dim=3, nn_width=16),
        (2, 3, 2),
        cond_dim=3,
        pattern=coupling_pattern(MASK_3),
    ),
    "AffineCoupling, bounded": Case(
        lambda k: gf.AffineCoupling(k, (4,), nn_width=16, log_scale_bound=2.0),
        (4,),
        pattern=coupling_pattern(gf.masks.half((4,))),
    ),
    "AdditiveCoupling": Case(
        lambda k: gf.AdditiveCoupling(k, (5,), mask=MASK_1, nn_width=16),
        (5,),
        pattern=coupling_pattern(MASK_1),
    ),
    "AdditiveCoupling, rank 3": Case(
        lambda k: gf.AdditiveCoupling(k, (2, 3, 2), mask=MASK_3, nn_width=16),
        (2, 3, 2),
        pattern=coupling_pattern(MASK_3),
    ),
    "DeepSigmoid": Case(lambda k: gf.DeepSigmoid(), ()),
    "DeepSigmoid, given": Case(
        lambda k: gf.DeepSigmoid(3, weights=[1, 2, 3], means=[-1.5, 0, 2], scales=[0.5, 1, 0.7]),
        (),
    ),
    "DeepSigmoidCoupling": Case(
        lambda k: gf.DeepSigmoidCoupling(k, (5,), mask=MASK_1, cond_dim=2, nn_width=16),
        (5,),
        cond_dim=2,
        pattern=coupling_pattern(MASK_1),
    ),
    "MixtureGaussianCDFCoupling": Case(
        lambda k: gf.MixtureGaussianCDFCoupling(k, (5,), mask=MASK_1, cond_dim=2, nn_width=16),
        (5,),
        cond_dim=2,
        pattern=coupling_pattern(MASK_1),
    ),
    "RQSpline": Case(lambda k: gf.RQSpline(), ()),
    "RQSpline, bent": Case(
        lambda k: eqx.tree_at(
            lambda s: (s.widths, s.heights, s.slopes),
            gf.RQSpline(n_bins=5, interval=3.0),
            tuple(jr.normal(k, (n,)) for n, k in zip((5, 5, 4), jr.split(k, 3), strict=True)),
        ),
        (),
    ),
    "RQSplineCoupling": Case(
        lambda k: gf.RQSplineCoupling(k, (5,), mask=MASK_1, cond_dim=2, nn_width=16),
        (5,),
        cond_dim=2,
        pattern=coupling_pattern(MASK_1),
    ),
    "HouseholderRotation": Case(lambda k: gf.HouseholderRotation(3, (4,), key=k), (4,)),
    "HouseholderRotation, default": Case(lambda k: gf.HouseholderRotation(2, (4,)), (4,)),
    "LULinear": Case(lambda k: bent_lu(k), (4,)),
    "ActNorm1D": Case(lambda k: bent_actnorm(k), (2, 3)),
    "MixtureGaussianCDFCoupling, rank 3": Case(
        lambda k: gf.MixtureGaussianCDFCoupling(k, (2, 3, 2), mask=MASK_3, n_components=3, nn_width=16),
        (2, 3, 2),
        pattern=coupling_pattern(MASK_3),
    ),
    "DeepSigmoidCoupling, rank 3": Case(
        lambda k: gf.DeepSigmoidCoupling(k, (2, 3, 2), mask=MASK_3, n_components=3, nn_width=16),
        (2, 3, 2),
        pattern=coupling_pattern(MASK_3),
    ),
    "RQSplineCoupling, rank 3": Case(
        lambda k: gf.RQSplineCoupling(k, (2, 3, 2), mask=MASK_3, nn_width=16),
        (2, 3, 2),
        pattern=coupling_pattern(MASK_3),
    ),
    "MaskedAutoregressive": Case(
        lambda k: gf.MaskedAutoregressive(
            k, shape=(5,), bijector=gf.RQSpline(), order=ORDER_1, cond_dim=2, nn_width=16
        ),
        (5,),
        cond_dim=2,
        pattern=order_pattern(ORDER_1),
    ),
    "MaskedAutoregressive, rank 3": Case(  # equal ranks of unequal sizes
        lambda k: gf.MaskedAutoregressive(
            k, shape=(2, 3, 2), bijector=gf.Affine(), order=ORDER_3, nn_width=10
        ),
        (2, 3, 2),
        pattern=order_pattern(ORDER_3),
    ),
    "MaskedAutoregressive, any network": Case(
        lambda k: gf.MaskedAutoregressive(
            k, shape=(4,), bijector=gf.Affine(), conditioner=gf.conditioners.mlp(8, 1), cond_dim=1
        ),
        (4,),
        cond_dim=1,
        pattern=order_pattern(range(4)),
    ),
    "MaskedAutoregressive, jacobi": Case(
        lambda k: gf.MaskedAutoregressive(
            k, shape=(4,), bijector=gf.Affine(), cond_dim=1, nn_width=16, inverse="jacobi"
        ),
        (4,),
        cond_dim=1,
        pattern=order_pattern(range(4)),
    ),
    "MarginalGaussianization": Case(lambda k: bent_marginals(k), (3,), pattern=np.eye(3, dtype=bool)),
    "Scan": Case(
        lambda k: gf.Scan(
            eqx.filter_vmap(
                lambda k: gf.RQSplineCoupling(k, (4,), cond_dim=2, nn_width=8),
            )(jr.split(k, 2))
        ),
        (4,),
        cond_dim=2,
    ),
    "Residual": Case(lambda k: steep(gf.Residual(k, shape=(3,), cond_dim=2, nn_width=8)), (3,), cond_dim=2),
    "Residual, banach": Case(
        lambda k: steep(
            gf.Residual(k, shape=(2, 2), lipschitz=0.5, nn_width=8, nn_depth=1, inverse="banach")
        ),
        (2, 2),
    ),
}


pytestmark = pytest.mark.usefixtures("quick_compilation")
N = 64
DRAWS = settings.default.max_examples  # of what compiles anew each time; see tests/conftest.py


def draw(case: Case, scale=1.0):
    x = scale * jr.normal(jr.key(1), (N, *case.shape))
    c = None if case.cond_dim is None else jr.normal(jr.key(2), (N, case.cond_dim))
    return x, c


def axes(c):
    return (0, None if c is None else 0)


SINGLE = ("RQSplineCoupling", "AffineCoupling", "MaskedAutoregressive", "LULinear")


def cases(*dtypes):
    """Every case, some of them left to `make nightly`.

    These are the cases that have a main case besides (a comma in the name), but for their contract in double
    precision, and the contract in single precision of most layers that are made of the menu's maps.
    """
    for name, case in CASES.items():
        for dtype in dtypes or (None,):
            variant = "," in name and dtype != "float64"
            built = dtype == "float32" and len(case.shape) > 0 and name not in SINGLE
            marks = [pytest.mark.nightly] if variant or built else []
            values = (case,) if dtype is None else (case, dtype)
            yield pytest.param(*values, id="-".join(filter(None, (name, dtype))), marks=marks)


@pytest.fixture(params=list(cases()), name="case")
def _case(request):
    return request.param


def test_every_public_bijection_has_a_case():
    public = {
        name
        for name in gf.__all__
        if isinstance(getattr(gf, name), type)
        and issubclass(getattr(gf, name), fb.AbstractBijection)
        and getattr(gf, name) is not gf.Bijection
    }
    assert public == {name.split(",")[0] for name in CASES}


@pytest.mark.parametrize(("case", "dtype"), list(cases("float64", "float32")), indirect=["dtype"])
def test_contract(case, dtype):
    """Shapes, types, round trips, log-determinants, the Jacobian's zeros; the tails likewise."""
    bijection = case.make(jr.key(0))
    x, c = draw(case)
    z, log_det = jax.eval_shape(jax.vmap(bijection.transform_and_log_det, axes(c)), x, c)
    assert (z.shape, log_det.shape) == (x.shape, (N,))
    assert z.dtype == log_det.dtype == jnp.dtype(dtype)
    report = gf.check_bijection(bijection, x, c)
    assert report.ok
    near = {"float64": 1e-12, "float32": 1e-4}[dtype]
    assert report["round trip x -> z -> x"] <= near
    run = jax.jit(jax.vmap(bijection.transform_and_log_det, axes(c)))
    again = jax.jit(jax.vmap(lambda z, c: bijection.transform(bijection.inverse(z, c), c), axes(c)))
    z = jnp.clip(5 * x, -10, 10)  # every |z| <= 10
    assert float(jnp.abs(again(z, c) - z).max()) <= near
    assert report["log-det vs. autodiff"] <= {"float64": 1e-11, "float32": 1e-4}[dtype]
    if case.pattern is not None:
        np.testing.assert_array_equal(report.pattern, case.pattern)
    for scale in case.far:
        x, c = draw(case, scale)
        # Far out a random network sets extreme parameters, and a flat stretch between two modes can
        # leave x undetermined in any precision (a slope of 1e-17 was seen), but never z.
        z, log_det = run(x, c)
        assert bool(jnp.isfinite(z).all() & jnp.isfinite(log_det).all())
        rtol, atol = (1e-12, 1e-11) if dtype == "float64" else (1e-5, 1e-4)
        np.testing.assert_allclose(again(z, c), z, rtol=rtol, atol=atol)
        if case.shape == ():
            assert bool((jnp.diff(run(jnp.sort(x), None)[0]) > 0).all())


MENU = {
    "Affine": gf.Affine(),
    "exp_affine": gf.bijectors.exp_affine(2.0),
    "MixtureGaussianCDF": gf.MixtureGaussianCDF(3),
    "DeepSigmoid": gf.DeepSigmoid(3),
    "RQSpline": gf.RQSpline(n_bins=5),
}


@st.composite
def couplings(draw):
    """A coupling of any shape, mask, bijector and condition, with a seed for the rest."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3).filter(lambda s: np.prod(s) > 1)))
    size = int(np.prod(shape))
    mask = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size))).reshape(shape)
    assume(mask.any() and not mask.all())
    return mask, draw(st.sampled_from(sorted(MENU))), draw(st.none() | st.integers(1, 3)), draw(seeds)


seeds = st.integers(0, 2**31 - 1)


@pytest.mark.drawn
@settings(max_examples=DRAWS)
@given(couplings())
def test_any_coupling_is_a_bijection(drawn):
    mask, name, cond_dim, seed = drawn
    keys = jr.split(jr.key(seed), 3)
    with jax.enable_x64(True):
        options = {"shape": mask.shape, "mask": mask, "cond_dim": cond_dim, "nn_width": 8}
        layer = gf.Coupling(keys[0], bijector=MENU[name], **options)
        c = None if cond_dim is None else jr.normal(keys[2], (8, cond_dim))
        report = gf.check_bijection(layer, jr.normal(keys[1], (8, *mask.shape)), c)
    assert not report.pattern[~coupling_pattern(mask)].any()


@functools.cache
def _trip(name, dtype):
    """Forward and back again of one menu entry, compiled once for all parameters."""
    family = gf.bijectors.Family(MENU[name])

    def trip(theta, x):
        theta = jnp.broadcast_to(family.theta(theta[None]), (len(x), family.size))
        z, log_det = family.apply("transform_and_log_det", theta, x)
        back, inverse_log_det = family.apply("inverse_and_log_det", theta, z)
        again, _ = family.apply("transform_and_log_det", theta, back)
        return z, log_det, back, inverse_log_det, again

    return family.size, jax.jit(trip)


@pytest.mark.drawn
@pytest.mark.parametrize("name", MENU)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=20 * DRAWS)
@given(data=st.data())
def test_any_number_survives_any_map(name, dtype, data):
    """Subnormal, signed zeros, huge: never NaN, never out of order, and back to the same z."""
    with jax.enable_x64(dtype == "float64"):
        size, trip = _trip(name, dtype)
        width = jnp.dtype(dtype).itemsize * 8
        # Squares must not overflow: a Gaussian's log-density holds one.
        huge = {"float32": 2.0**50, "float64": 1e150}[dtype]
        floats = lambda bound: st.floats(-bound, bound, width=width)
        theta = data.draw(st.lists(floats(5.0), min_size=size, max_size=size), "parameters")
        x = data.draw(st.lists(floats(huge) | floats(30.0), min_size=12, max_size=12), "x")
        x = jnp.sort(jnp.array(x, dtype))
        z, log_det, back, inverse_log_det, again = trip(jnp.array(theta, dtype), x)
        for value in (z, log_det, back, inverse_log_det):
            assert bool(jnp.isfinite(value).all())
        rounding = 8 * jnp.finfo(dtype).eps * (1 + jnp.abs(z[1:]))
        assert bool((jnp.diff(z) >= -rounding).all())
        rtol, atol = (1e-12, 1e-11) if dtype == "float64" else (1e-5, 1e-4)
        np.testing.assert_allclose(again, z, rtol=rtol, atol=atol)


@pytest.mark.drawn
@pytest.mark.parametrize("name", MENU)
@settings(max_examples=20 * DRAWS)
@given(data=st.data())
def test_what_is_passive_comes_through_to_the_last_bit(name, data):
    layer = _passive_layer(name)
    x = np.array(
        data.draw(st.lists(st.floats(width=32, allow_nan=False), min_size=5, max_size=5)), np.float32
    )
    for method in ("transform", "inverse"):
        z = np.asarray(layer[method](x))
        np.testing.assert_array_equal(z[MASK_1].view(np.uint32), x[MASK_1].view(np.uint32))


@functools.cache
def _passive_layer(name):
    layer = gf.Coupling(jr.key(0), shape=(5,), mask=MASK_1, bijector=MENU[name], nn_width=8)
    return {
        "transform": jax.jit(lambda x: layer.transform(x)),
        "inverse": jax.jit(lambda y: layer.inverse(y)),
    }


def test_gradients_of_the_inverse(case):
    """In the input, the parameters and the condition, against finite differences."""
    with jax.enable_x64(True):
        bijection = case.make(jr.key(0))
        params, static = split_parameters(bijection)
        params = jax.tree.map(
            lambda a: a + 0.1 * jr.normal(jr.key(3), a.shape, a.dtype), params
        )  # not at a special point
        x, c = jax.tree.map(lambda a: a[:4], draw(case))
        y = jax.jit(jax.vmap(bijection.transform, axes(c)))(x, c)

        @jax.jit
        def both(params, y, c):
            layer = eqx.combine(params, static)
            out, log_det = jax.vmap(layer.inverse_and_log_det, axes(c))(y, c)
            return jnp.sin(out).sum() + log_det.sum()

        check_grads(both, (params, y, c), order=1, modes=("rev",), rtol=1e-5, atol=1e-5)
        jacobian = jax.jit(jax.jacfwd(both, argnums=1))(params, y, c)  # forward mode agrees
        np.testing.assert_allclose(
            jacobian, jax.jit(jax.grad(both, argnums=1))(params, y, c), rtol=1e-9, atol=1e-12
        )


@pytest.mark.nightly
def test_works_in_flowjax(case):
    """Scan over filter_vmap-built layers equals Chain; Invert and jit; one trace only."""
    keys = jr.split(jr.key(0), 2)
    scan = fb.Scan(eqx.filter_vmap(case.make, axis_size=2)(keys))
    chain = fb.Chain([case.make(k) for k in keys])
    x, c = draw(case)
    traces = 0

    @eqx.filter_jit
    def run(bijection, x, c):
        nonlocal traces
        traces += 1
        return jax.vmap(bijection.transform_and_log_det, axes(c))(x, c)

    for ours, theirs in zip(run(scan, x, c), run(chain, x, c), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=1e-4)
    back = run(fb.Invert(scan), run(scan, x, c)[0], c)[0]
    np.testing.assert_allclose(back, x, atol=1e-3)
    before = traces
    again = fb.Scan(eqx.filter_vmap(case.make, axis_size=2)(keys))  # built anew, same structure
    run(again, x + 1, c)
    assert traces == before


def test_condition_changes_the_map_or_is_ignored(case):
    bijection = case.make(jr.key(0))
    x, c = draw(case)
    if c is None:
        run = eqx.filter_jit(bijection.transform)
        np.testing.assert_array_equal(run(x[0], jnp.ones(7)), run(x[0]))
    else:
        run = eqx.filter_jit(bijection.transform)
        assert not np.allclose(run(x[0], c[0]), run(x[0], c[1]))
        with pytest.raises(ValueError, match="condition"):
            bijection.transform(x[0])
        with pytest.raises(ValueError, match=r"`condition` must have shape .*got \(9,\)"):
            bijection.inverse(x[0], jnp.ones(9))


def test_wrong_event_is_named(case):
    bijection = case.make(jr.key(0))
    c = None if case.cond_dim is None else jnp.ones(case.cond_dim)
    wrong = jnp.ones((*case.shape, 9))
    if not isinstance(bijection, gf.Bijection):
        with pytest.raises(ValueError, match="shape"):
            bijection.transform(wrong, c)
        return
    for method, name in ((bijection.transform, "x"), (bijection.inverse, "y")):
        with pytest.raises(ValueError, match=rf"`{name}` must have shape .*; got "):
            method(wrong, c)
        with pytest.raises(ValueError, match=rf"`{name}` must be real-valued"):
            method(jnp.ones(case.shape, complex), c)
        with pytest.raises(ValueError, match=rf"`{name}` must be an array .*; got str"):
            method("x", c)


def test_integer_events_and_keyword_calls():
    layer = gf.AffineCoupling(jr.key(0), (4,))
    np.testing.assert_array_equal(layer.transform(jnp.arange(4)), layer.transform(jnp.arange(4.0)))
    x, y = jnp.ones(4), layer.transform_and_log_det(x=jnp.ones(4))[0]
    np.testing.assert_allclose(layer.inverse_and_log_det(y=y, condition=None)[0], x, atol=1e-6)


# --- the coupling layer ------------------------------------------------------------------------


def test_affine_coupling_reproduces_the_source_document():
    with jax.enable_x64(True):
        layer = gf.AffineCoupling(jr.key(0), shape=(4,), nn_width=32, nn_depth=2)
        x = jr.normal(jr.key(1), (4,))
        z, log_det = layer.transform_and_log_det(x)
        assert np.round(z, 3).tolist() == [-1.184, -0.116, 0.363, 0.679]
        assert f"{log_det:.5f}" == "-0.00768"
        jacobian = np.round(np.asarray(jax.jacfwd(layer.transform)(x)), 3)
        expected = [[1, 0, 0, 0], [0, 1, 0, 0], [-0.08, -0.036, 1.031, 0], [0.02, 0.027, 0, 0.963]]
        np.testing.assert_array_equal(jacobian, expected)
        batch = jr.normal(jr.key(2), (2000, 4))
        back = jax.vmap(layer.inverse)(jax.vmap(layer.transform)(batch))
        assert float(jnp.abs(back - batch).max()) <= 1e-15


def test_conditioner_of_zeros_leaves_the_given_bijector():
    zeros = lambda in_size, out_size, *, key: lambda passive: jnp.zeros(out_size)
    bijector = gf.MixtureGaussianCDF(2, means=[-1.0, 2.0], scales=[0.5, 1.5])
    layer = gf.Coupling(jr.key(0), shape=(4,), bijector=bijector, conditioner=zeros)
    x = jnp.array([1.0, 2.0, 3.0, 4.0])
    expected = jax.vmap(bijector.transform)(x[2:])
    np.testing.assert_allclose(layer.transform(x)[2:], expected, rtol=1e-6)


def test_frozen_parts_of_a_bijector_stay_and_are_not_trained():
    bijector = eqx.tree_at(lambda b: b.loc, gf.Affine(3.0), replace_fn=NonTrainable)
    layer = gf.Coupling(jr.key(0), shape=(2,), bijector=bijector)
    assert layer.conditioner.out_size == 1  # the scale only
    grads = eqx.filter_grad(lambda b: b.transform(jnp.ones(2)).sum())(layer)
    moving = [g for g in jax.tree.leaves(grads.conditioner) if eqx.is_array(g)]
    still = [g for g in jax.tree.leaves((grads._family._theta, grads._family._rest)) if eqx.is_array(g)]
    assert any(bool(g.any()) for g in moving)
    assert not any(bool(g.any()) for g in still)
    shift = layer.transform(jnp.array([0.5, 0.0]))[1]
    np.testing.assert_allclose(shift, 3.0, rtol=1e-6)


def test_a_layer_can_be_cast_to_another_precision():
    """Whatever precision its bijector was made in."""
    with jax.enable_x64(True):
        bijector = gf.bijectors.exp_affine(2.0)
    layer = gf.Coupling(jr.key(0), shape=(2,), bijector=bijector)
    z = layer.transform(jnp.ones(2))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: a.astype(float) if eqx.is_inexact_array(a) else a, layer)
        again = wide.transform(jnp.ones(2))
        assert (z.dtype, again.dtype) == (jnp.float32, jnp.float64)
        np.testing.assert_allclose(again, np.asarray(z, float), rtol=1e-5)


def test_the_parts_of_a_coupling_layer_can_be_used_alone():
    layer = gf.MixtureGaussianCDFCoupling(jr.key(0), (4,), n_components=2, cond_dim=1)
    x, c = jr.normal(jr.key(1), (4,)), jnp.ones(1)
    theta = layer.theta(x[:2], c)
    assert theta.shape == (2, 6)
    z = jnp.stack([layer.bijector(p).transform(v) for p, v in zip(theta, x[2:], strict=True)])
    np.testing.assert_allclose(z, layer.transform(x, c)[2:], rtol=1e-5)


GOOD = {"key": jr.key(0), "shape": (4,), "bijector": gf.Affine()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": 0}, "`key` must be a random key.*got 0"),
        ({"mask": np.ones(3, bool)}, r"`mask` must have shape \(4,\).*got \(3,\)"),
        ({"mask": np.ones(4)}, "`mask` must be a boolean array.*got dtype float64"),
        ({"mask": np.ones(4, bool)}, "`mask` must leave an active.*got all True"),
        ({"mask": np.zeros(4, bool)}, "`mask` must leave a passive.*got all False"),
        ({"shape": (1,)}, r"`shape` must hold at least two.*got \(1,\)"),
        ({"shape": (2.5,)}, r"`shape` must be a tuple of positive integers.*got \(2.5,\)"),
        ({"shape": 4}, "`shape` must be a tuple of positive integers.*got 4"),
        ({"shape": (0, 4)}, "`shape` must be a tuple of positive integers"),
        ({"bijector": fb.Flip((4,))}, r"`bijector` must be scalar.*got \(4,\)"),
        ({"bijector": jnp.tanh}, "`bijector` must be a flowjax bijection; got "),
        ({"conditioner": 3}, "`conditioner` must be a factory.*got int"),
        ({"conditioner": lambda i, o: 3}, "`conditioner` must be a factory.*unexpected keyword"),
        (
            {"conditioner": lambda i, o, *, key: eqx.nn.MLP(i + 1, o, 8, 1, key=key)},
            "`conditioner` must map a vector of size 2 to one of size 4; it raised",
        ),
        ({"conditioner": lambda i, o, *, key: 3}, "`conditioner` must make a callable.*got int"),
        (
            {"conditioner": lambda i, o, *, key: lambda h: h},
            r"`conditioner` must map a vector of size 2 to one of size 4; got output \(2,\)",
        ),
        ({"cond_dim": 0}, "`cond_dim` must be a whole number ≥ 1; got 0"),
        ({"nn_width": 0}, "`nn_width` must be a whole number ≥ 1; got 0"),
        ({"nn_depth": 1.5}, "`nn_depth` must be a whole number ≥ 0; got 1.5"),
    ],
)
def test_coupling_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        gf.Coupling(**(GOOD | change))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_components": 0}, "`n_components` must be a whole number ≥ 1; got 0"),
        ({"n_components": 2.0}, "`n_components` must be a whole number ≥ 1; got 2.0"),
        ({"log_scale_bound": 0.0}, "`log_scale_bound` must be positive"),
        ({"log_scale_bound": np.inf}, "`log_scale_bound` must be positive and finite; got inf"),
        ({"weights": "ab"}, "`weights` must be an array of real numbers"),
        ({"n_components": 2, "means": [0.0]}, r"`means` must have shape \(2,\).*got \(1,\)"),
        ({"n_components": 2, "scales": [1.0, -1.0]}, "`scales` must be positive"),
        ({"n_components": 2, "weights": [1.0, np.nan]}, "`weights` must be finite"),
        ({"n_components": 1, "scales": [9.0], "log_scale_bound": 2.0}, "`scales` must lie within"),
    ],
)
def test_mixture_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        gf.MixtureGaussianCDF(**arguments)


def test_coupling_forms_pass_their_errors_on():
    with pytest.raises(ValueError, match="`n_components`"):
        gf.MixtureGaussianCDFCoupling(jr.key(0), (4,), n_components=0)
    with pytest.raises(ValueError, match="`mask`"):
        gf.AffineCoupling(jr.key(0), (4,), mask=[True, False])


# --- masks and conditioners ---------------------------------------------------------------------

FAMILIES = {
    "half": [gf.masks.half((8,)), gf.masks.flip(gf.masks.half((8,)))],
    "half, fixed": [gf.masks.half((8,))] * 3,
    "alternating": [gf.masks.alternating((8,)), gf.masks.flip(gf.masks.alternating((8,)))],
    "random": [gf.masks.random(jr.key(i), (8,)) for i in range(3)],
    "checkerboard": [gf.masks.checkerboard(2, 4), gf.masks.flip(gf.masks.checkerboard(2, 4))],
    "channel": [gf.masks.channel(2, 2, 2), gf.masks.checkerboard(2, 2, 2)],
    "rotation": [gf.masks.half((8,)), None, gf.masks.half((8,))],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_reachability_is_the_pattern_of_the_jacobian(family):
    """Exactly: what the masks forbid is zero to the last bit, what they allow is not zero."""
    masks = FAMILIES[family]
    shape = next(m.shape for m in masks if m is not None)
    smooth = gf.conditioners.mlp(16, 1, activation=jnp.tanh)
    layers = [
        gf.HouseholderRotation(8, (8,), key=k)
        if m is None
        else gf.AffineCoupling(k, m.shape, mask=m, conditioner=smooth)
        for m, k in zip(masks, jr.split(jr.key(0), len(masks)), strict=True)
    ]
    for depth in range(1, len(layers) + 1):
        run = lambda v, depth=depth: fb.Chain(layers[:depth]).transform(v.reshape(shape)).ravel()
        jacobian = np.asarray(jax.jit(jax.jacfwd(run))(jr.normal(jr.key(1), (8,))))
        np.testing.assert_array_equal(jacobian != 0, gf.reachability(masks[:depth]))


def test_masks_say_who_is_passive():
    assert gf.masks.alternating((2, 3)).tolist() == [[True, False, True], [False, True, False]]
    assert gf.masks.random(jr.key(3), (7,)).sum() == 3
    assert (gf.masks.random(jr.key(3), (40,)) != gf.masks.random(jr.key(4), (40,))).any()
    board = gf.masks.checkerboard(3, 4, 2)
    assert board.shape == (3, 4, 2)
    assert all(board[i, j, c] == ((i + j) % 2 == 0) for i in range(3) for j in range(4) for c in range(2))
    assert gf.masks.channel(3, 4, 5).sum(axis=2).tolist() == [[2] * 4] * 3
    assert (gf.masks.flip(board) == ~board).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gf.masks.alternating((1,)), r"`shape` must hold at least two elements.*got \(1,\)"),
        (lambda: gf.masks.checkerboard(1, 1, 3), "`height` must make two pixels"),
        (lambda: gf.masks.checkerboard(0, 4), "`height` must be a whole number ≥ 1; got 0"),
        (lambda: gf.masks.channel(2, 2, 1), "`channels` must be a whole number ≥ 2; got 1"),
        (lambda: gf.masks.flip(np.ones(3)), "`mask` must be a boolean array"),
        (lambda: jax.jit(lambda k: gf.masks.random(k, (4,)).sum())(jr.key(0)), "`key` must be concrete"),
        (lambda: gf.reachability([None]), "`masks` must hold at least one mask"),
        (
            lambda: gf.reachability([gf.masks.half((4,)), gf.masks.half((5,))]),
            r"`masks` must hold .* of one shape; got \[\(4,\), \(5,\)\]",
        ),
        (lambda: gf.conditioners.attention(30), "`nn_width` must divide by heads = 4; got 30"),
        (lambda: gf.conditioners.resnet(depth=0), "`nn_depth` must be a whole number ≥ 1; got 0"),
        (lambda: gf.conditioners.shared_trunk(head_width=0), "`head_width` must be a whole number ≥ 1"),
        (lambda: gf.AffineCoupling(jr.key(0), (2,), log_scale_bound=0.0), "`log_scale_bound` must be pos"),
    ],
)
def test_masks_and_conditioners_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float64", marks=pytest.mark.nightly)], indirect=True
)
@pytest.mark.parametrize("name", ["mlp", "resnet", "shared_trunk", "attention"])
def test_conditioners_fit_any_coupling(name, dtype):
    """Each makes a bijection that listens to its input; a zeroed last layer leaves the given bijector."""
    factory = getattr(gf.conditioners, name)
    given = gf.Affine(0.5, 2.0)  # well-conditioned whatever a network says
    x, c = jr.normal(jr.key(1), (8, 5)), jr.normal(jr.key(2), (8, 2))
    options = {"shape": (5,), "bijector": given, "cond_dim": 2}
    layer = gf.Coupling(jr.key(0), conditioner=factory(16), **options)
    assert gf.check_bijection(layer, x, c).ok
    theta = jax.jit(jax.vmap(layer.theta))(x[:, :2], c)
    assert (theta.std(axis=0) > 1e-3).all()
    zero = gf.Coupling(jr.key(0), conditioner=factory(16, zero_last=True), **options)
    z = jax.jit(jax.vmap(zero.transform))(x, c)
    expected = jax.vmap(jax.vmap(given.transform))(x[:, 2:])
    np.testing.assert_allclose(z[:, 2:], expected, atol=1e-5 if dtype == "float32" else 1e-13)


def test_conditioners_are_what_their_formulas_say():
    """A gated block that says nothing lets through; a token knows its place."""
    net = gf.conditioners.resnet(8, 2)(3, 4, key=jr.key(0))
    quiet = eqx.tree_at(lambda n: [outer for _, outer in n.blocks], net, replace_fn=gf.conditioners._zeros)
    x = jr.normal(jr.key(1), (3,))
    np.testing.assert_allclose(quiet(x), net.last(jax.nn.relu(net.first(x))), rtol=1e-6)
    assert float(jnp.abs(net(x) - quiet(x)).max()) > 1e-3
    look = gf.conditioners.attention(8)(3, 4, key=jr.key(0))
    assert float(jnp.abs(look(x) - look(x[::-1])).max()) > 1e-3


# --- the mixture CDF ---------------------------------------------------------------------------


def hard_mixtures(n=500, k=8):
    """Well-separated components, narrow and wide, of very different weights."""
    keys = jr.split(jr.key(0), 3)
    make = lambda logits, means, scales: eqx.tree_at(
        lambda b: (b.logits, b.means, b.log_scales),
        gf.MixtureGaussianCDF(k),
        (logits, means, scales),
    )
    return jax.vmap(make)(
        1.5 * jr.normal(keys[0], (n, k)), 3 * jr.normal(keys[1], (n, k)), jr.normal(keys[2], (n, k)) - 0.5
    )


def test_hard_mixtures_invert(dtype):
    """|z| <= 10: to rounding error times the local slope, in a few steps, wherever |z| <= 10."""
    mixtures = hard_mixtures()
    z = jr.uniform(jr.key(4), (500,), minval=-10, maxval=10)
    x = jax.jit(jax.vmap(lambda b, z: b.inverse(z)))(mixtures, z)
    again, log_det = jax.jit(jax.vmap(lambda b, x: b.transform_and_log_det(x)))(mixtures, x)
    eps = float(jnp.finfo(dtype).eps)
    # One rounding of x moves z by eps |x| T'(x); allow some for T itself.
    allowed = 40 * eps * (1 + jnp.abs(z) + jnp.abs(x) * jnp.exp(log_det))
    assert bool((jnp.abs(again - z) <= allowed).all())
    _, steps = jax.jit(jax.vmap(lambda b, z: unwrap(b)._solve(z)))(mixtures, z)
    assert int(jnp.median(steps)) <= 7
    assert int(steps.max()) <= 25


def test_round_trip_bounds_of_the_default_mixture(dtype):
    b = gf.MixtureGaussianCDF()
    z = jnp.linspace(-10, 10, 401)
    x = jax.jit(jax.vmap(b.inverse))(z)
    again = jax.jit(jax.vmap(b.transform))(x)
    assert float(jnp.abs(again - z).max()) <= (1e-12 if dtype == "float64" else 1e-4)


def test_one_standard_component_is_the_identity(dtype):
    b = gf.MixtureGaussianCDF(1)
    x = jnp.array([-1e4, -100.0, -30.0, -8.0, -1.0, 0.0, 1e-3, 2.0, 8.0, 30.0, 100.0, 1e4])
    z, log_det = jax.jit(jax.vmap(b.transform_and_log_det))(x)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(z, x, rtol=8 * eps, atol=8 * eps)
    np.testing.assert_allclose(log_det, 0, atol=8 * eps)
    np.testing.assert_allclose(jax.jit(jax.vmap(b.inverse))(z), x, rtol=8 * eps, atol=16 * eps)
    slopes = jax.jit(jax.vmap(jax.grad(b.transform)))(x)
    np.testing.assert_allclose(slopes, 1, rtol=100 * eps)


def test_mixture_of_two_far_modes_has_a_finite_log_det(dtype):
    """Between narrow modes the density underflows; its logarithm must not."""
    b = gf.MixtureGaussianCDF(2, means=[-3.0, 3.0], scales=[0.01, 0.01])
    z, log_det = b.transform_and_log_det(jnp.zeros(()))
    expected = -0.5 * 300.0**2 - np.log(0.01) - 0.5 * np.log(2 * np.pi) + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(log_det, expected, rtol=1e-4)
    assert abs(float(z)) < 1e-3


def test_mixture_gaussianizes_its_own_mixture():
    """Samples of the mixture come out standard normal: mean, variance, kurtosis."""
    b = gf.MixtureGaussianCDF(2, weights=[1, 3], means=[-2.0, 1.0], scales=[0.3, 0.8])
    k1, k2 = jr.split(jr.key(0))
    which = jr.bernoulli(k1, 0.75, (40_000,))
    x = jnp.where(which, 1.0, -2.0) + jnp.where(which, 0.8, 0.3) * jr.normal(k2, (40_000,))
    z = np.asarray(jax.vmap(b.transform)(x))
    np.testing.assert_allclose([z.mean(), z.var(), (z**4).mean()], [0, 1, 3], atol=0.12)


def test_components_do_not_share_gradients():
    b = gf.MixtureGaussianCDF(4)
    grad = eqx.filter_grad(lambda b: b.transform(jnp.float32(0.7)))(b)
    assert len({round(float(g), 6) for g in grad.means}) == 4


# --- the spline, the linear maps, ActNorm ------------------------------------------------------


def test_spline_is_smooth_at_its_ends_and_finite_beyond(dtype):
    b = CASES["RQSpline, bent"].make(jr.key(0))
    ends = jnp.array([-3.0, 3.0])
    np.testing.assert_allclose(jax.vmap(b.transform)(ends), ends)
    inside = jax.vmap(jax.grad(b.transform))(ends * (1 - 1e-6))
    np.testing.assert_allclose(inside, 1, atol=1e-3)
    grads = jax.vmap(lambda x: eqx.filter_grad(lambda b: sum(b.transform_and_log_det(x)))(b))(
        jnp.array([-1e4, -3.0, 0.0, 3.0, 1e4])
    )
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def test_spline_has_the_bins_it_says():
    b = gf.RQSpline(n_bins=6)
    assert (b.widths.size, b.heights.size, b.slopes.size) == (6, 6, 5)
    assert gf.RQSplineCoupling(jr.key(0), (2,), n_bins=6).conditioner.out_size == 17


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_bins": 0}, "`n_bins` must be a whole number"),
        ({"interval": 0.0}, "`interval` must be positive"),
        ({"n_bins": 4, "min_width": 0.3}, "`min_width` must lie between"),
        ({"min_slope": 1.0}, "`min_slope` must lie between"),
    ],
)
def test_spline_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        gf.RQSpline(**arguments)


def test_linear_maps_refuse_what_is_no_vector():
    for make in (gf.LULinear, lambda shape: gf.HouseholderRotation(2, shape)):
        with pytest.raises(ValueError, match="`shape` must be that of a vector"):
            make((2, 2))
    with pytest.raises(ValueError, match="`n_reflections` must be a whole number"):
        gf.HouseholderRotation(0, (2,))


def test_householder_is_orthogonal_and_its_pairs_start_as_the_identity():
    with jax.enable_x64(True):
        turn = gf.HouseholderRotation(3, (4,), key=jr.key(0))
        matrix = jax.jacfwd(turn.transform)(jnp.zeros(4))
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(4), atol=1e-14)
        np.testing.assert_allclose(jnp.linalg.det(matrix), -1, atol=1e-14)
        still = gf.HouseholderRotation(4, (3,))
        np.testing.assert_allclose(still.transform(jnp.arange(3.0)), np.arange(3.0), atol=1e-15)


def test_householder_takes_any_axes_up_to_their_signs():
    with jax.enable_x64(True):
        for key in jr.split(jr.key(0), 5):
            axes, _ = jnp.linalg.qr(jr.normal(key, (4, 4)))
            turn = gf.HouseholderRotation(4, (4,), key=key).with_axes(axes)
            matrix = jax.jacfwd(turn.transform)(jnp.zeros(4))
            np.testing.assert_allclose(jnp.abs(matrix @ axes.T), np.eye(4), atol=1e-14)
        turn = gf.HouseholderRotation(3, (3,)).with_axes(jnp.eye(3))
        np.testing.assert_allclose(jnp.abs(jax.jacfwd(turn.transform)(jnp.zeros(3))), np.eye(3), atol=1e-15)
        with pytest.raises(ValueError, match="`n_reflections` must be 3"):
            gf.HouseholderRotation(2, (3,)).with_axes(jnp.eye(3))


@pytest.mark.parametrize("scan", [False, True])
def test_data_init_standardises_what_reaches_each_actnorm(scan):
    def layer(key):
        return fb.Chain([gf.ActNorm1D((3,)), gf.AffineCoupling(key, (3,), cond_dim=1), fb.Flip((3,))])

    keys = jr.split(jr.key(0), 3)
    make = lambda: fb.Scan(eqx.filter_vmap(layer)(keys)) if scan else fb.Chain([layer(k) for k in keys])
    x = 3 + 5 * jr.normal(jr.key(1), (500, 3)) * jnp.array([[1.0, 10.0, 0.1]])
    c = jr.normal(jr.key(2), (500, 1))
    flow = Transformed(Normal(jnp.zeros(3)), fb.Invert(make()))
    before = jax.tree.leaves(eqx.filter(flow, eqx.is_array))
    new = gf.data_init(flow, x, c)
    for a, b in zip(before, jax.tree.leaves(eqx.filter(flow, eqx.is_array)), strict=True):
        assert a is b  # pure: the old flow is as it was
    bijection = new.bijection.bijection
    pick = lambda tree, i: jax.tree.map(lambda a: a[i] if eqx.is_array(a) else a, tree)
    for i in range(3):
        part = pick(bijection.bijection, i) if scan else bijection[i]
        inside = jax.vmap(part[0].transform)(x)
        np.testing.assert_allclose(inside.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(inside.std(0), 1, atol=1e-4)
        x = jax.vmap(part.transform)(x, c)
    backwards = gf.data_init(fb.Invert(gf.ActNorm1D((3,))), x)
    out = jax.vmap(backwards.transform)(x)
    np.testing.assert_allclose([out.mean(0), out.std(0)], [np.zeros(3), np.ones(3)], atol=1e-4)
    with pytest.raises(ValueError, match="`x` must have shape"):
        gf.data_init(flow, x[:1], c)
    with pytest.raises(ValueError, match="`x` must be finite"):
        gf.data_init(flow, x.at[0, 0].set(jnp.nan), c)


@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_scan_is_flowjaxs_and_stores_less(dtype):
    """The same gradient, to rounding, from less than a third of the memory."""
    x = jr.normal(jr.key(1), (256, 2))
    layers = eqx.filter_vmap(lambda k: gf.RQSplineCoupling(k, (2,)))(jr.split(jr.key(0), 8))
    params, static = eqx.partition(layers, eqx.is_inexact_array)

    def gradient(stack):
        def total(params, x):
            z, log_det = jax.vmap(stack(eqx.combine(params, static)).transform_and_log_det)(x)
            return jnp.sin(z).sum() + log_det.sum()

        program = jax.jit(jax.grad(total, argnums=(0, 1))).lower(params, x).compile()
        return program(params, x), program.memory_analysis().temp_size_in_bytes

    (ours, memory), (theirs, more) = gradient(gf.Scan), gradient(fb.Scan)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    assert 3 * memory < more


@pytest.mark.nightly  # the chapter on depth prints the same norms
def test_affine_stacks_have_the_source_documents_gradient_norms():
    """The source's data, layout and keys; its norms are printed to one decimal."""
    rng = np.random.default_rng(0)
    t = rng.uniform(0.5, 3.5, 3000)
    arm = (rng.integers(0, 2, 3000) * 2 - 1)[:, None]
    xy = arm * np.stack([t * np.cos(2.5 * t), t * np.sin(2.5 * t)], axis=1)
    xy += 0.08 * rng.standard_normal((3000, 2))
    with jax.enable_x64(True):
        x = jnp.asarray((xy - xy.mean(0)) / xy.std(0))[:1000]

        def block(key):
            turn_key, first, second = jr.split(key, 3)
            turn = gf.HouseholderRotation(n_reflections=2, shape=(2,))
            turn = eqx.tree_at(lambda r: r.params, turn, jr.normal(turn_key, turn.params.shape))
            coupling = lambda k: gf.AffineCoupling(k, shape=(2,), nn_width=24, nn_depth=2)
            return fb.Chain([turn, coupling(first), fb.Flip((2,)), coupling(second), fb.Flip((2,))])

        for depth, expected in ((2, 1.8), (4, 3.6), (8, 2.4), (16, 8.9)):
            stack = fb.Scan(eqx.filter_vmap(block)(jr.split(jr.key(0), depth)))
            flow = Transformed(Normal(jnp.zeros(2)), fb.Invert(stack))
            grads = eqx.filter_jit(eqx.filter_grad(lambda f: -f.log_prob(x).mean()))(flow)
            norm = optax.tree.norm(eqx.filter(grads, eqx.is_array))
            assert abs(float(norm) - expected) <= 0.0501, (depth, float(norm))


# --- autoregressive layers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "cond_dim", "width"),
    [
        (np.arange(20), None, 17),  # several loops, fewer units than degrees
        (ORDER_1, 2, 3),
        (np.array([1, 1, 0, 0]), 2, 17),
        (ORDER_3.ravel(), None, 3),
    ],
)
def test_the_three_inverses_agree(order, cond_dim, width):
    """Bit for bit the same inverse up to rounding, from a network of few units or of many."""
    with jax.enable_x64(True):
        size = len(order)
        x = jr.normal(jr.key(1), (20, size))
        c = None if cond_dim is None else jr.normal(jr.key(2), (20, cond_dim))
        found = []
        for inverse in ("incremental", "sequential", "jacobi"):
            layer = gf.MaskedAutoregressive(
                jr.key(0), shape=(size,), bijector=gf.Affine(), order=order, cond_dim=cond_dim,
                nn_width=width, inverse=inverse,
            )  # fmt: skip
            z = jax.jit(jax.vmap(layer.transform, axes(c)))(x, c)
            found.append(jax.jit(jax.vmap(layer.inverse_and_log_det, axes(c)))(z, c))
            np.testing.assert_allclose(found[-1][0], x, atol=1e-13)
        for other in found[1:]:
            np.testing.assert_allclose(found[0][1], other[1], atol=1e-13)


def test_jacobi_counts_its_sweeps_and_stops():
    """Few where little is read, never more than there are ranks; a coarse tolerance takes fewer."""
    layer = lambda **options: gf.MaskedAutoregressive(
        jr.key(0), shape=(32,), bijector=gf.Affine(), nn_width=64, **options
    )
    y = jr.normal(jr.key(1), (100, 32))
    fine, coarse = layer(), layer(tolerance=1e-2)
    x, sweeps = jax.jit(jax.vmap(fine.inverse_and_sweeps))(y)
    np.testing.assert_allclose(x, jax.jit(jax.vmap(fine.inverse))(y), atol=1e-5)
    assert 3 <= int(sweeps.min()) <= int(sweeps.max()) < 32
    fewer = jax.jit(jax.vmap(coarse.inverse_and_sweeps))(y)[1]
    assert bool((fewer < sweeps).all())


def test_an_order_is_normalised_and_two_passes_make_a_coupling():
    layer = gf.MaskedAutoregressive(
        jr.key(0), shape=(2, 2), bijector=gf.Affine(), order=np.array([[7, -1], [7, 3]])
    )
    assert layer.order.tolist() == [[2, 0], [2, 1]]
    assert layer.passes == 3
    two = gf.MaskedAutoregressive(jr.key(0), shape=(5,), bijector=gf.Affine(), passes=2)
    assert two.order.tolist() == [0, 0, 0, 1, 1]
    jacobian = jax.jacfwd(two.transform)(jnp.ones(5))
    np.testing.assert_array_equal(np.asarray(jacobian) != 0, order_pattern(two.order))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": np.array([0.0, 1, 2])}, "`order` must be an array of whole numbers.*float64"),
        ({"order": np.arange(4)}, r"`order` must have shape \(3,\).*\(4,\)"),
        ({"order": np.zeros(3, int)}, "`order` must have at least two different ranks"),
        ({"order": np.arange(3), "passes": 2}, "`passes` must be None where `order` is given"),
        ({"passes": 4}, "`passes` must be at most 3"),
        ({"passes": 1}, "`passes` must be a whole number ≥ 2"),
        ({"inverse": "newton"}, "`inverse` must be one of"),
        ({"inverse": "incremental", "conditioner": gf.conditioners.mlp(4, 1)}, "`inverse` must be another"),
        ({"tolerance": -1.0}, "`tolerance` must be at least 0"),
        ({"bijector": gf.AffineCoupling(jr.key(0), (2,))}, "`bijector` must be scalar"),
        ({"cond_dim": 0}, "`cond_dim` must be a whole number ≥ 1"),
    ],
)
def test_autoregressive_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        gf.MaskedAutoregressive(jr.key(0), **({"shape": (3,), "bijector": gf.Affine()} | options))


def test_a_masked_network_is_no_conditioner_of_a_coupling():
    with pytest.raises(ValueError, match="`conditioner` must be unmasked;"):
        gf.AffineCoupling(jr.key(0), (4,), conditioner=gf.conditioners.made(8, 1))


@pytest.mark.parametrize("make", [gf.maf, gf.iaf])
def test_maf_and_iaf_start_at_the_base_and_agree_with_themselves(make):
    """A new flow is the standard normal; the density of samples is that evaluated afterwards."""
    with jax.enable_x64(True):
        flow = make(jr.key(0), 3, layers=2, cond_dim=1, nn_width=8)
        c = jnp.ones((50, 1))
        x = jr.normal(jr.key(1), (50, 3))
        normal = jax.scipy.stats.norm.logpdf(x).sum(1)
        np.testing.assert_allclose(eqx.filter_jit(flow.log_prob)(x, c), normal, rtol=1e-12)
        params, static = split_parameters(flow)
        params = jax.tree.map(lambda a: a + 0.3 * jr.normal(jr.key(3), a.shape, a.dtype), params)
        flow = eqx.combine(params, static)
        draw = eqx.filter_jit(lambda f: f.sample_and_log_prob(jr.key(2), condition=c))
        x, log_prob = draw(flow)
        np.testing.assert_allclose(eqx.filter_jit(flow.log_prob)(x, c), log_prob, atol=1e-10)
        assert isinstance(flow.bijection, fb.Invert if make is gf.maf else fb.Scan)  # the quick way


# --- residual blocks ----------------------------------------------------------------------------


class Scaled(eqx.Module):
    """A contraction that is at its bound in every direction: L times a rotated tanh."""

    matrix: jax.Array

    def __call__(self, x, condition=None):
        return self.matrix @ jnp.tanh(x)


def scaled(dim, lipschitz):
    turn, _ = jnp.linalg.qr(jr.normal(jr.key(4), (dim, dim)))
    return Scaled(-lipschitz * (0.8 * jnp.eye(dim) + 0.2 * turn))


@pytest.mark.parametrize("lipschitz", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("dim", [2, pytest.param(8, marks=pytest.mark.nightly)])
def test_roulette_is_unbiased_and_truncation_is_not(dim, lipschitz):
    """Values and gradients (in x and in the parameters) within three standard errors of the exact ones."""
    with jax.enable_x64(True):
        network, x, keys = scaled(dim, lipschitz), jnp.full(dim, 0.1), jr.split(jr.key(5), 20_000)
        exact = lambda n, x: jnp.linalg.slogdet(jnp.eye(dim) + jax.jacfwd(n)(x))[1]
        both = lambda f: jax.value_and_grad(f, argnums=(0, 1))
        value, grads = both(exact)(network, x)

        @eqx.filter_jit
        def draws(**options):
            estimate = lambda n, x, key: gf.residual.log_det_estimate(n, x, key, **options)[0]
            return jax.vmap(both(estimate), (None, None, 0))(network, x, keys)

        values, slopes = draws(terms=2, keep=lipschitz)
        for truth, found in zip(
            jax.tree.leaves((value, grads)), jax.tree.leaves((values, slopes)), strict=True
        ):
            error = found.std(0) / np.sqrt(len(keys))
            assert float(jnp.max(jnp.abs(found.mean(0) - truth) / error)) <= (3 if truth.ndim == 0 else 4)
        cut = draws(terms=4, keep=None)[0]
        bias = float(cut.mean() - value)
        tail = dim * (-np.log1p(-lipschitz) - sum(lipschitz**k / k for k in range(1, 5)))
        assert 5 * float(cut.std()) / np.sqrt(len(keys)) < abs(bias) <= tail


@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float64", marks=pytest.mark.nightly)], indirect=True
)
def test_residual_blocks_stay_within_their_bound(dtype):
    """However large the weights; the certified bound covers the inverse's error; Newton and Banach agree."""
    for lipschitz in (0.5, 0.9, 0.97):
        found = []
        for inverse in ("newton", "banach"):
            block = steep(
                gf.Residual(jr.key(0), shape=(3,), lipschitz=lipschitz, nn_width=16, inverse=inverse)
            )
            assert lipschitz * 0.999 < float(jnp.prod(block.network.norms())) <= lipschitz
            x = 2 * jr.normal(jr.key(1), (500, 3))
            z = jax.jit(jax.vmap(block.transform))(x)
            np.testing.assert_allclose(jax.vmap(block.network)(x), z - x, atol=1e-5)  # used alone
            back, steps, bound = jax.jit(jax.vmap(block.inverse_and_steps))(z)
            rounding = 8 * float(jnp.finfo(dtype).eps) * 10
            assert bool((jnp.linalg.norm(back - x, axis=1) <= bound + rounding).all())
            assert float(bound.max()) <= rounding / (1 - lipschitz)
            found.append((back, steps.max()))
        np.testing.assert_allclose(found[0][0], found[1][0], atol=rounding)
        assert int(found[0][1]) < int(found[1][1])


def test_residual_log_dets_need_a_key_and_can_be_exchanged():
    flow = gf.residual_flow(jr.key(0), 3, layers=2, nn_width=8, log_det="roulette")
    x = jr.normal(jr.key(1), (400, 3))
    with pytest.raises(ValueError, match="`log_det` must have a key, since 'roulette' is random"):
        flow.log_prob(x)
    exact = gf.with_log_det(flow, "exact").log_prob(x)
    estimates = gf.estimate_log_prob(flow, x, jr.key(2))
    error = (estimates - exact).std() / 20
    assert 0 < abs(float((estimates - exact).mean())) <= 3 * float(error)
    np.testing.assert_array_equal(estimates, gf.estimate_log_prob(flow, x, jr.key(2)))
    keyed = gf.with_log_det(flow, "hutchinson", terms=60, key=jr.key(3))
    np.testing.assert_allclose(jnp.mean(keyed.log_prob(x) - exact), 0, atol=0.2)
    keys = keyed.bijection.bijection.bijection[1].log_det.key
    assert len(jax.random.key_data(keys)) == 2  # one a block, not one for all
    block = gf.Residual(jr.key(0), shape=(2,), log_det="roulette")
    np.testing.assert_allclose(block.inverse(block.transform(jnp.ones(2))), 1, atol=1e-5)  # no key needed


def test_a_large_event_is_solved_without_its_jacobian():
    """Gradients of the inverse at 40 elements, where nothing of size 40 x 40 is formed."""
    with jax.enable_x64(True):
        block = steep(gf.Residual(jr.key(0), shape=(40,), nn_width=8, log_det="roulette"))
        y = jr.normal(jr.key(1), (40,))
        tangent = jr.normal(jr.key(2), (40,))
        pulled = jax.jit(jax.grad(lambda y: jnp.vdot(tangent, block.inverse(y))))(y)
        jacobian = jax.jit(jax.jacfwd(lambda x: block.transform(x)))(jax.jit(lambda y: block.inverse(y))(y))
        np.testing.assert_allclose(pulled, jnp.linalg.solve(jacobian.T, tangent), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lipschitz": 1.0}, "`lipschitz` must lie between 0 and 1.*1.0"),
        ({"lipschitz": 0.0}, "`lipschitz` must lie between 0 and 1"),
        ({"lipschitz": -0.5}, "`lipschitz` must lie between 0 and 1"),
        ({"shape": (33,)}, "`log_det` must be 'hutchinson' or 'roulette' for more than 32 elements.*33"),
        ({"shape": (33,), "log_det": "roulette", "inverse": "newton"}, "`inverse` must be 'banach'"),
        ({"log_det": "trace"}, "`log_det` must be one of"),
        ({"log_det": "hutchinson", "terms": 0}, "`terms` must be a whole number ≥ 1"),
        ({"inverse": "jacobi"}, "`inverse` must be one of"),
        ({"nn_depth": 0}, "`nn_depth` must be a whole number ≥ 1"),
        ({"cond_dim": 0}, "`cond_dim` must be a whole number ≥ 1"),
    ],
)
def test_residual_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        gf.Residual(jr.key(0), **({"shape": (3,)} | options))
    with pytest.raises(ValueError, match="`flow` must hold a Residual block"):
        gf.with_log_det(gf.AffineCoupling(jr.key(0), (2,)), key=jr.key(1))
    with pytest.raises(ValueError, match="`keep` must lie between 0 and 1"):
        gf.residual.log_det_estimate(lambda x, c: x / 2, jnp.ones(2), jr.key(0), terms=1, keep=1.0)
