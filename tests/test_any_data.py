"""Data of any scale and type, with ties, constants or outliers: a right result, or an error that says why."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from data_support import MIX, NORM, flow_of
from hypothesis import given, settings
from hypothesis import strategies as st

import gauss_flows as gf
from gauss_flows.moments import mean_and_std

pytestmark = pytest.mark.usefixtures("quick_compilation")

DRAWS = settings.default.max_examples

SCALES = [1.0, 1.0, 0.03, 1e-45, 1e-36, 1e-25, 1e-18, 1e18, 2e30, 3e37, 1e38, 1e200]

OFFSETS = [0.0, 0.0, 1.0, 1e3, 1e7, -1e9]

FAULTS = {
    "none": lambda x, row: x,
    "ties": lambda x, row: x.std(axis=0) / 4 * np.round(4 * x / x.std(axis=0)),
    "constant": lambda x, row: x * [1, 0] + [0, x[0, 1]],
    "outlier": lambda x, row: np.where(row, 1e3 * x, x),
    "far outlier": lambda x, row: np.where(row, 1e25 * x, x),
    "equal columns": lambda x, row: x[:, [0, 0]],
    "NaN": lambda x, row: np.where(row, np.nan, x),
    "sentinel": lambda x, row: np.where(row, 1e39, x),
}

TYPES = {
    "float32": lambda x: x.astype(np.float32),
    "float64": lambda x: x,
    "jax": lambda x: jnp.asarray(x.astype(np.float32)),
    "float16": lambda x: x.astype(np.float16),
    "big-endian": lambda x: x.astype(">f4"),
    "Fortran order": np.asfortranarray,
    "list": lambda x: x.tolist(),
    "masked": np.ma.masked_invalid,
    "complex": lambda x: x.astype(complex),
    "longdouble": lambda x: x.astype(np.longdouble),
    "object": lambda x: x.astype(object),
    "text": lambda x: x.astype(str),
    "integer": lambda x: np.nan_to_num(np.clip(x, -9, 9)).astype(int),
}

HOSTILE_FLOW = flow_of(NORM, gf.MarginalGaussianization((2,), bijector=MIX))


@st.composite
def hostile(draw):
    """Data with a fault, of a type; what both are; and whether the fault is that there is none."""
    x = np.random.default_rng(draw(st.integers(0, 2**31 - 1))).normal(size=(64, 2))
    pair = lambda values: np.array([draw(st.sampled_from(values)) for _ in range(2)])
    x = pair(SCALES) * (x + pair(OFFSETS))
    row = np.arange(64)[:, None] == draw(st.integers(0, 63))
    fault = draw(st.just("none") | st.sampled_from(sorted(FAULTS)))
    kind = draw(st.sampled_from(["float32", "float64"]) | st.sampled_from(sorted(TYPES)))
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return TYPES[kind](FAULTS[fault](x, row)), kind, fault


@functools.cache
def hostile_programs():
    log_prob = eqx.filter_jit(lambda flow, x: flow.log_prob(x))
    transform = jax.jit(jax.vmap(lambda layer, x: layer.transform(x), (None, 0)))
    options = {"layers": 1, "nn_width": 4, "bijector": gf.Affine()}
    train = gf.coupling_flow(jr.key(0), 2, **options)
    return log_prob, transform, train, gf.coupling_flow(jr.key(0), 2, cond_dim=2, **options)


def attempt(call, *names):
    """What a call returns, or None if it raised a `ValueError` that names the argument."""
    try:
        return call()
    except ValueError as error:
        if not str(error).startswith(tuple(f"`{name}` must" for name in names)):
            raise
        return None


@pytest.mark.drawn
@settings(max_examples=8 * DRAWS)
@given(drawn=hostile())
def test_any_data_give_a_right_result_or_a_named_error(drawn):
    data, kind, fault = drawn
    log_prob, transform, trainable, conditional = hostile_programs()
    layer = attempt(lambda: gf.data_init(NORM, data), "x")
    warm = attempt(lambda: gf.warm_start(HOSTILE_FLOW, data, em_steps=3), "x")
    result = attempt(lambda: gf.rbig(jr.key(0), data, layers=1, n_components=2, em_steps=3), "x")
    options = {"steps": 2, "batch_size": 16, "progress": False}
    try:
        fitted = attempt(
            lambda: gf.fit(jr.key(0), conditional, np.zeros((64, 2)), condition=data, **options), "condition"
        )
    except gf.NonFiniteLoss as error:  # conditions of 1e30 overflow in a network, and `fit` says so
        fitted = error.result
    try:
        learned = attempt(lambda: gf.fit(jr.key(0), trainable, data, **options), "x")
    except gf.NonFiniteLoss as error:  # data of 1e30 overflow in a flow that was not set from them
        learned = error.result
    if kind in ("masked", "complex", "longdouble", "object", "text") or fault in ("NaN", "sentinel"):
        assert layer is warm is result is learned is None or kind == "integer"
    if layer is not None:
        rows = jnp.asarray(np.asarray(data), jnp.float32)
        exact = np.asarray(rows, np.float64)
        mean, std, _ = mean_and_std(exact, float(np.finfo(np.float32).eps))
        # Units in the last place of the largest number and of the log-scale, in standard deviations.
        rounding = 1.2e-7 * (
            8 + 90 * np.minimum(np.abs(mean) / std, 10) + 4 * np.abs(exact / std).max(axis=0)
        )
        right = (exact - mean) / std
        z = np.asarray(transform(layer, rows), np.float64)
        assert (np.abs(z - right) <= rounding + 2e-5 * np.abs(right)).all()
        gaussian = -np.log(2 * np.pi) - 0.5 * np.square(z).sum(axis=1) - np.log(std).sum()
        assert warm is not None  # behind an ActNorm no bound is in the way
        assert fitted is not None
        found = np.asarray(log_prob(warm, rows))
        assert np.isfinite(found).all()
        assert found.mean() >= gaussian.mean() - 0.1
    if result is not None:
        assert np.isfinite([*result.gain, *result.gain_error]).all()
        if fault == "none":
            assert np.asarray(log_prob(result.flow, rows)).mean() >= gaussian.mean() - 0.3
    report = attempt(lambda: gf.check_bijection(NORM, data), "x")
    assert report is None or report.ok
    for function in (gf.entropy, gf.negentropy, gf.total_correlation):
        found = attempt(lambda function=function: function(data), "x")
        if found is not None:
            assert np.isfinite(found).all()
            if fault == "none":  # against the closed form of a normal with the sample's scales
                scale = mean_and_std(np.asarray(data, np.float64))[1]
                truth = 2.8379 + np.log(scale).sum() if function is gf.entropy else 0.0
                assert abs(found.value - truth) < 0.2 + 5 * found.standard_error
