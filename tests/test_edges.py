"""Derivatives exactly where a formula changes: knots, ends of intervals, whole numbers and ±0."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from cases import CASES, axes, now

import gauss_flows as gf
from gauss_flows.bijection import partition
from gauss_flows.normal import ndtri_exp

pytestmark = pytest.mark.usefixtures("quick_compilation")

WHOLE = (*range(-5, 6), 0.0, -0.0)
STEP = 1e-6


def knots(spline):
    """The knots of a spline in x and in y, computed in double precision by another formula."""
    k, width = len(spline.widths), 2 * spline.interval
    parts = (np.asarray(jax.nn.softmax(raw), float) for raw in (spline.widths, spline.heights))
    sizes = (spline.min_width + (1 - k * spline.min_width) * part for part in parts)
    return [np.append(0, np.cumsum(size)) * width - spline.interval for size in sizes]


def edges(bijection, shape, method):
    """Events of whole numbers; for a scalar map each of them, its knots and the floats beside those."""
    if shape:
        size = int(np.prod(shape))
        rows = [np.full(size, value) for value in WHOLE]
        rows += [np.roll(np.resize(WHOLE, size), shift) for shift in range(3)]
        return jnp.asarray(np.stack(rows).reshape(-1, *shape), float)
    places = np.array(WHOLE)
    if isinstance(bijection, gf.RQSpline):
        own = knots(bijection)[method == "inverse"]
        places = np.concatenate([places, own, np.nextafter(own, -9), np.nextafter(own, 9)])
    return jnp.asarray(places, float)


def edge_cases():
    """Every case; `make nightly` runs variants but for the splines', and most layers that the maps make.

    Except flowjax's own spline, which is not ours to mend: at its interval's ends its derivative is wrong.
    """
    for name, case in CASES.items():
        if name == "Coupling, frozen spline":
            continue
        variant = "," in name and not name.startswith("RQSpline,")
        layer = len(case.shape) > 0 and name not in ("RQSplineCoupling", "MaskedAutoregressive")
        later = variant or layer
        yield pytest.param(case, id=name, marks=[pytest.mark.nightly] if later else [])


@pytest.mark.parametrize("case", list(edge_cases()))
def test_derivatives_at_edges(case):
    """Autodiff, both modes, against the reported log-determinant and central differences, both directions.

    Every map is continuously differentiable, so a central difference needs no side.
    """
    with jax.enable_x64(True):
        bijection = case.make(jr.key(0))
        c = None if case.cond_dim is None else jnp.asarray([1.0, -1.0, 0.0][: case.cond_dim])
        for method in ("transform", "inverse"):
            x = edges(bijection, case.shape, method)
            size = int(np.prod(case.shape))
            basis = STEP * jnp.eye(size).reshape(size, *case.shape)

            def measure(x, method=method, size=size, basis=basis):
                one = lambda x: getattr(bijection, method)(x, c)
                flat = lambda a: a.reshape(size, size)
                up, down = (jax.vmap(lambda d, s=s: one(x + s * d))(basis) for s in (1, -1))
                differences = flat(up - down).T / (2 * STEP)
                log_det = getattr(bijection, f"{method}_and_log_det")(x, c)[1]
                return flat(jax.jacfwd(one)(x)), flat(jax.jacrev(one)(x)), differences, log_det

            forward, reverse, differences, log_det = jax.jit(jax.vmap(measure))(x)
            np.testing.assert_allclose(reverse, forward, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(np.linalg.slogdet(forward)[1], log_det, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(forward, differences, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["RQSpline, bent", "MixtureGaussianCDF, given", "DeepSigmoid, given"])
def test_gradients_in_the_parameters_at_edges(name):
    """The value's are the limits from both sides; the log-determinant's one of them, since it has a kink."""
    with jax.enable_x64(True):
        bijection = CASES[name].make(jr.key(0))
        params, static = partition(bijection)
        for method in ("transform", "inverse"):

            @jax.jit
            @jax.vmap
            def gradients(x, method=method):
                run = lambda params: getattr(eqx.combine(params, static), f"{method}_and_log_det")(x)
                return jax.jacrev(run)(params)

            x = edges(bijection, (), method)
            here, below, above = map(gradients, (x, x - STEP, x + STEP))
            for at, left, right in zip(*map(jax.tree.leaves, (here[0], below[0], above[0])), strict=True):
                np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4)
                np.testing.assert_allclose(at, (left + right) / 2, rtol=1e-4, atol=1e-4)
            leaves = (jax.tree.leaves(side[1]) for side in (here, below, above))
            at, left, right = (jnp.concatenate([a.reshape(len(a), -1) for a in side], 1) for side in leaves)
            off = jnp.minimum(jnp.abs(at - left).max(axis=1), jnp.abs(at - right).max(axis=1))
            # The sides differ by two thirds of the gradient and more; over one step it changes by 2e-4 of it.
            assert bool((off <= 1e-3 * (1 + jnp.abs(at).max(axis=1))).all())


@pytest.mark.parametrize(("n_bins", "interval"), [(8, 4.0), (1, 2.0), (5, 3.0), (10, 1.0)])
def test_an_untouched_spline_has_slope_one_everywhere(n_bins, interval, dtype):
    spline = gf.RQSpline(n_bins, interval, min_width=0.05)
    own = np.linspace(-interval, interval, n_bins + 1).astype(dtype)
    sides = [np.nextafter(own, np.asarray(side, dtype)) for side in (-9, 9)]
    x = jnp.concatenate([jnp.asarray(WHOLE, dtype), *map(jnp.asarray, (own, *sides))])
    eps = float(jnp.finfo(dtype).eps)
    for method in (spline.transform, spline.inverse):
        np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(method)))(x), 1, rtol=100 * eps)


def test_the_slope_of_the_inverse_where_its_discriminant_is_rounded_away():
    """The middle bin has mean slope 1,000 and slope 0.001 at its ends: b^2 - 4ac is mere rounding there."""
    raw = jnp.array([0.0, -20.0, 0.0]), jnp.array([-20.0, 0.0, -20.0]), jnp.array([-1e4, -1e4])
    spline = gf.RQSpline(3, min_width=1e-3, min_slope=1e-3)
    spline = eqx.tree_at(lambda s: (s.widths, s.heights, s.slopes), spline, raw)
    low, high = knots(spline)[1][1:3]
    y = jnp.concatenate([jnp.linspace(low, high, 101)[1:-1], high - jnp.geomspace(1e-6, 1e-2, 100)])
    slope, log_det = jax.jit(
        jax.vmap(lambda y: (jax.grad(spline.inverse)(y), spline.inverse_and_log_det(y)[1]))
    )(y)
    np.testing.assert_allclose(jnp.log(slope), log_det, rtol=1e-4, atol=1e-4)


def test_the_second_derivative_of_the_quantile_at_the_median(dtype):
    r"""With R = Phi / phi: dz/dl = R and d2z/dl2 = R (1 + z R), which is sqrt(pi / 2) at z = 0."""
    second = jax.jit(jax.grad(jax.grad(ndtri_exp)))
    log_half = jnp.log(jnp.asarray(0.5, dtype))
    np.testing.assert_allclose(second(log_half), np.sqrt(np.pi / 2), rtol=1e-5)
    np.testing.assert_allclose(second(jnp.nextafter(log_half, -jnp.inf)), np.sqrt(np.pi / 2), rtol=1e-5)


def test_derivatives_of_the_spline_inverse_of_second_order():
    """In the middle of a bin, where differences show no side."""
    with jax.enable_x64(True):
        spline = CASES["RQSpline, bent"].make(jr.key(0))
        own = knots(spline)[1]
        y = jnp.asarray((own[1:] + own[:-1]) / 2)
        first = jax.jit(jax.vmap(jax.grad(spline.inverse)))
        second = jax.jit(jax.vmap(jax.grad(jax.grad(spline.inverse))))(y)
        np.testing.assert_allclose(second, (first(y + 1e-5) - first(y - 1e-5)) / 2e-5, rtol=1e-6, atol=1e-6)
        # 1 / T' has the derivative -T'' / T'^3 in y.
        bend = jax.jit(jax.vmap(jax.grad(jax.grad(spline.transform))))(jax.vmap(spline.inverse)(y))
        np.testing.assert_allclose(second, -bend * first(y) ** 3, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    now(
        ("RQSpline, bent", "MixtureGaussianCDF, given", "MixtureGaussianCDF, one"), "MixtureGaussianCDF, one"
    ),
)
def test_second_derivatives_at_edges_in_a_scan(name):
    """Reverse over reverse in a scan, where JAX drops custom rules, against forward over reverse outside."""
    with jax.enable_x64(True):
        bijection = CASES[name].make(jr.key(0))
        for method in ("transform", "inverse"):
            one = getattr(bijection, method)
            scanned = lambda x, one=one: jax.lax.scan(lambda x, _: (one(x), None), x, length=1)[0]
            x = edges(bijection, (), method)
            found = jax.jit(jax.vmap(jax.grad(jax.grad(scanned))))(x)
            np.testing.assert_allclose(found, jax.jit(jax.vmap(jax.jacfwd(jax.grad(one))))(x), atol=1e-9)


def test_the_default_flow_passes_its_check_at_the_origin_and_on_whole_numbers():
    whole = np.random.default_rng(0).integers(-5, 6, (32, 2))
    whole[0] = 0
    bijection = gf.coupling_flow(jr.key(0), 2, layers=2, nn_width=8).bijection
    assert gf.check_bijection(bijection, whole).ok


@pytest.mark.parametrize("name", [n for n in CASES if "," not in n] + ["HouseholderRotation, default"])
def test_every_layer_works_under_strict_promotion(name):
    """Traced only, with the derivatives of both directions."""
    case = CASES[name]
    with jax.numpy_dtype_promotion("strict"):
        bijection = case.make(jr.key(0))
        x = jnp.zeros((2, *case.shape))
        c = None if case.cond_dim is None else jnp.zeros((2, case.cond_dim))
        for method in (bijection.transform_and_log_det, bijection.inverse_and_log_det):
            total = lambda x, method=method: sum(a.sum() for a in jax.vmap(method, axes(c))(x, c))
            assert jax.eval_shape(jax.grad(total), x).dtype == x.dtype
