"""Tests of ``gauss_flows.autoregressive``."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from cases import order_pattern, steep
from network_support import KEY, LOC, fixed

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


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
        ({"passes": 1}, "`passes` must be a whole number of at least 2"),
        ({"inverse": "newton"}, "`inverse` must be one of"),
        (
            {"inverse": "incremental", "conditioner": gf.conditioners.mlp(4, 1)},
            "`inverse` must be 'sequential' or 'jacobi'",
        ),
        ({"tolerance": -1.0}, "`tolerance` must be at least 0"),
        ({"bijector": gf.AffineCoupling(jr.key(0), (2,))}, "`bijector` must be scalar"),
        ({"cond_dim": 0}, "`cond_dim` must be a whole number of at least 1"),
    ],
)
def test_autoregressive_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        gf.MaskedAutoregressive(jr.key(0), **({"shape": (3,), "bijector": gf.Affine()} | options))


def test_a_large_event_is_solved_without_its_jacobian():
    """Gradients of the inverse at 40 elements, where nothing of size 40 x 40 is formed."""
    with jax.enable_x64(True):
        block = steep(gf.Residual(jr.key(0), shape=(40,), nn_width=8, log_det="roulette"))
        y = jr.normal(jr.key(1), (40,))
        tangent = jr.normal(jr.key(2), (40,))
        pulled = jax.jit(jax.grad(lambda y: jnp.vdot(tangent, block.inverse(y))))(y)
        jacobian = jax.jit(jax.jacfwd(lambda x: block.transform(x)))(jax.jit(lambda y: block.inverse(y))(y))
        np.testing.assert_allclose(pulled, jnp.linalg.solve(jacobian.T, tangent), rtol=1e-11, atol=1e-12)


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
