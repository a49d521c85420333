"""The cases of the contract: how to make each bijection, and the pattern of its Jacobian."""

from collections.abc import Callable
from dataclasses import dataclass, field

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import gauss_flows as gf
from gauss_flows.bijection import partition
from gauss_flows.image import unsqueeze


@dataclass
class Case:
    make: Callable  # key -> bijection
    shape: tuple[int, ...]
    cond_dim: int | None = None
    pattern: np.ndarray | None = None  # entries of the flat Jacobian that may differ from 0
    far: tuple[float, ...] = field(default=(10.0, 30.0))  # standard deviations
    error: float = 0.0  # that a solver leaves, in units of |x| or of the log-determinant
    inside: Callable = lambda x: x  # from real numbers to points that the bijection takes
    reach: float = 10.0  # |z| up to which single precision can hold the points well


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
    return eqx.tree_at(lambda b: (b.log_scale, b.bias), gf.ActNorm((2, 3)), tuple(numbers))


def shaken(bijection, key):
    """All trainable parameters moved at random."""
    params, rest = partition(bijection)
    leaves, structure = jax.tree.flatten(params)
    keys = jr.split(key, len(leaves))
    moved = [a + 0.3 * jr.normal(k, a.shape, a.dtype) for a, k in zip(leaves, keys, strict=True)]
    return eqx.combine(jax.tree.unflatten(structure, moved), rest)


def channel_coupling(key, height, width, channels, cond_dim=0):
    network = gf.conditioners.conv(height, width, 8, cond_dim=cond_dim)
    return gf.Coupling(
        key,
        (height, width, channels),
        bijector=gf.bijectors.exp_affine(2.0),
        mask=gf.masks.channel(height, width, channels),
        conditioner=network,
        cond_dim=cond_dim or None,
    )


def channel_pattern(pixels, channels) -> np.ndarray:
    """Each pixel depends on its own channels."""
    return np.kron(np.eye(pixels, dtype=bool), np.ones((channels, channels), bool))


def split_pattern() -> np.ndarray:
    """2×2 pixels of two channels, of which the first depends on itself and the second on the first too."""
    first = np.tile([True, False], 4)
    return np.eye(8, dtype=bool) | np.broadcast_to(first, (8, 8))


def bent_marginals(key):
    layer = gf.MarginalGaussianization((3,), bijector=gf.MixtureGaussianCDF(3))
    return eqx.tree_at(lambda b: b.raw, layer, 0.5 * jr.normal(key, layer.raw.shape))


def patch_layer(key, *, cond_dim=None, bijector=None, inverse=None, zero_last=False):
    """An autoregressive layer over patches, whose transformer depends on the condition."""
    network = gf.conditioners.patch_transformer(8, heads=2, zero_last=zero_last)
    bijector = gf.bijectors.exp_affine(2.0) if bijector is None else bijector
    options = {"bijector": bijector, "conditioner": network, "cond_dim": cond_dim, "inverse": inverse}
    layer = gf.MaskedAutoregressive(key, PATCHES.shape, order=PATCHES, **options)
    if cond_dim is None or zero_last:
        return layer
    where = lambda layer: layer.conditioner.condition.weight
    return eqx.tree_at(where, layer, 0.5 * jr.normal(key, where(layer).shape))


def steep(block):
    """The weights so large that every layer is at its bound."""
    where = lambda b: [weight.args[0] for weight in b.network.weights]
    return eqx.tree_at(where, block, [10 * weight for weight in where(block)])


SUPPORTS = ["real", "positive", (0, 1), (-3, np.inf), (-np.inf, 2), ("simplex", 2)]


def into_supports(x):
    """Real numbers in the supports, by other formulas than the package's, and never on their ends."""
    part = np.clip(np.asarray(jax.scipy.special.ndtr(x[:, 2])), 1e-30, 1 - 1e-6)
    scores = np.exp(np.clip(x[:, 5:], -40, 10))
    columns = [x[:, 0], np.exp(x[:, 1]), part, np.exp(x[:, 3]) - 3 + 1e-5, 2 - 1e-5 - np.exp(x[:, 4])]
    return jnp.column_stack([*columns, scores / (1 + scores.sum(axis=1, keepdims=True))]).astype(x.dtype)


SPLINE = fb.RationalQuadraticSpline(knots=4, interval=3)

MASK_1, MASK_3 = _random_mask(0, (5,)), _random_mask(1, (2, 3, 2))

ORDER_1 = np.array([3, 0, 4, 1, 2])

PATCHES = 3 - gf.masks.patch_order((4, 4, 2), 2)  # from the last patch to the first

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
    "CircularSpline": Case(
        lambda k: jax.tree.map(lambda a: a + jr.normal(k, a.shape), gf.CircularSpline(n_bins=5)), ()
    ),
    "Supports": Case(lambda k: gf.Supports(SUPPORTS), (7,), inside=into_supports, reach=4.0),
    "RQSplineCoupling": Case(
        lambda k: gf.RQSplineCoupling(k, (5,), mask=MASK_1, cond_dim=2, nn_width=16),
        (5,),
        cond_dim=2,
        pattern=coupling_pattern(MASK_1),
    ),
    "HouseholderRotation": Case(lambda k: gf.HouseholderRotation(3, (4,), key=k), (4,)),
    "HouseholderRotation, default": Case(lambda k: gf.HouseholderRotation(2, (4,)), (4,)),
    "LULinear": Case(lambda k: bent_lu(k), (4,)),
    "ActNorm": Case(lambda k: bent_actnorm(k), (2, 3)),
    "ActNorm, per channel": Case(
        lambda k: shaken(gf.ActNorm((2, 3, 2), per_channel=True), k),
        (2, 3, 2),
        pattern=np.eye(12, dtype=bool),
    ),
    "Conv1x1": Case(lambda k: shaken(gf.Conv1x1(k, (2, 3, 3)), k), (2, 3, 3), pattern=channel_pattern(6, 3)),
    "Squeeze": Case(
        lambda k: shaken(gf.Squeeze(channel_coupling(k, 1, 2, 4, cond_dim=2)), k),
        (2, 4, 1),
        cond_dim=2,
        pattern=coupling_pattern(unsqueeze(gf.masks.channel(1, 2, 4))),
    ),
    "Split": Case(
        lambda k: shaken(gf.Split(k, gf.Squeeze(gf.Conv1x1(k, (1, 1, 4))), cond_dim=2), k),
        (2, 2, 2),
        cond_dim=2,
        pattern=split_pattern(),
    ),
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
    "MaskedAutoregressive, patches": Case(
        lambda k: patch_layer(k), PATCHES.shape, pattern=order_pattern(PATCHES)
    ),
    "MaskedAutoregressive, patches and condition": Case(
        lambda k: patch_layer(k, cond_dim=3), PATCHES.shape, cond_dim=3, pattern=order_pattern(PATCHES)
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
    "FlowODE": Case(
        lambda k: gf.FlowODE(k, (3,), cond_dim=2, nn_width=8, nn_depth=1), (3,), cond_dim=2, error=1e-6
    ),
    "FlowODE, rank 2": Case(
        lambda k: gf.FlowODE(k, (2, 2), nn_width=8, solver="heun", steps=64), (2, 2), error=1e-4
    ),
}

N = 64


def draw(case: Case, scale=1.0):
    x = case.inside(scale * jr.normal(jr.key(1), (N, *case.shape)))
    c = None if case.cond_dim is None else jr.normal(jr.key(2), (N, case.cond_dim))
    return x, c


def now(names, *chosen):
    """Parameters of which the chosen are tested by `make test`, and the others by `make nightly`."""
    later = pytest.mark.nightly
    return [pytest.param(name, id=name, marks=[] if name in chosen else later) for name in names]


def axes(c):
    return (0, None if c is None else 0)


OF_THE_MENU = ("AdditiveCoupling", "MixtureGaussianCDFCoupling", "DeepSigmoidCoupling")
SINGLE = ("RQSplineCoupling", "AffineCoupling", "MaskedAutoregressive", "LULinear")


def cases(*dtypes):
    """Every case, some of them left to `make nightly`.

    These are the cases that have a main case besides (a comma in the name: another shape or option), and
    the contract in single precision of most layers that are made of the menu's maps; of some of these all
    but the contract.
    """
    for name, case in CASES.items():
        for dtype in dtypes or (None,):
            variant = "," in name
            built = dtype == "float32" and len(case.shape) > 0 and name not in SINGLE
            built = built or (dtype is None and name in OF_THE_MENU)
            marks = [pytest.mark.nightly] if variant or built else []
            values = (case,) if dtype is None else (case, dtype)
            yield pytest.param(*values, id="-".join(filter(None, (name, dtype))), marks=marks)
