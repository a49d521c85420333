"""Tests of ``gauss_flows.structure``."""

import collections
import dataclasses
import enum
import functools
import json
import os
import subprocess
import sys
import types
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from file_support import PUBLIC, Held, blank, coupling, edit_header, same, small
from flowjax.distributions import Transformed

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (gf.RQSpline(8, 4.0), gf.RQSpline(8, 3.0), r"file's setting \S+\.interval = 4\.0; it has 3\.0"),
        (
            gf.RQSpline(3),
            gf.RQSpline(3, min_width=0.02),
            r"file's setting \S+\.min_width = 0\.01; it has 0\.02",
        ),
        (
            gf.RQSpline(3),
            gf.DeepSigmoid(3),
            r"file's setting \S+ = gauss_flows\.\w+:RQSpline; it has gauss_flows\.\w+:DeepSigmoid",
        ),
        (
            gf.MixtureGaussianCDF(2, log_scale_bound=5.0),
            gf.MixtureGaussianCDF(2, log_scale_bound=4.0),
            r"file's setting \S+ = 5\.0; it has 4\.0",
        ),
        (
            gf.bijectors.exp_affine(2.0),
            gf.bijectors.exp_affine(1.0),
            r"file's setting \S+ = 2\.0; it has 1\.0",
        ),
    ],
)
def test_another_bijector_in_a_layer_is_refused(theirs, ours, message, path):
    make = lambda bijector: gf.Coupling(jr.key(0), shape=(2,), bijector=bijector, nn_width=8, nn_depth=1)
    gf.save(path, make(theirs))
    with pytest.raises(ValueError, match=f"`like` must have the {message}"):
        gf.load(path, make(ours))


def test_another_interval_in_a_flow_is_refused(path):
    """The reported case: one changed number, deep inside, and every array fits."""
    flow = small(bijector=gf.RQSpline(8, 4.0))
    gf.save(path, flow)
    with pytest.raises(
        ValueError, match=r"`like` must have the file's setting \.bijection\S+ = 4\.0; it has 3\.0"
    ):
        gf.load(path, small(bijector=gf.RQSpline(8, 3.0)))
    assert same(gf.load(path, blank(flow)), flow)


def layer(**options):
    options = {"bijector": gf.Affine(), "nn_width": 8, "nn_depth": 1, "order": np.array([0, 1, 2])} | options
    return gf.MaskedAutoregressive(jr.key(0), shape=(3,), **options)


def residual(**options):
    return gf.Residual(jr.key(0), shape=(2,), nn_width=8, nn_depth=1, **options)


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (coupling(), coupling(jax.nn.relu), r"\.activation = jax\S*:silu; it has jax\S*:relu"),
        (coupling(), coupling(jnp.tanh), r"\.activation = jax\S*:silu; it has jax\S*:tanh"),
        (coupling(), coupling(mask=(False, True, False, True)), r"\._passive\[0\] = 0; it has 1"),
        (coupling(), coupling(shape=(2, 2)), r"len\(\.shape\) = 1; it has 2"),
        (layer(), layer(inverse="jacobi"), r"\.inverse_method = 'incremental'; it has 'jacobi'"),
        (layer(inverse="jacobi"), layer(inverse="jacobi", tolerance=0.1), r"\.tolerance = None; it has 0\.1"),
        (layer(), layer(order=np.array([1, 0, 2])), r"\._ranks\[0\] = 0; it has 1|\.degrees"),
        (residual(lipschitz=0.9), residual(lipschitz=0.8), r"\.lipschitz = 0\.9|\['bound'\] = 0\.9"),
        (residual(), residual(inverse="banach"), r"\.inverse_method = 'newton'; it has 'banach'"),
        (residual(log_det="hutchinson"), residual(log_det="roulette"), r"\.log_det\.method = 'hutchinson'"),
        (
            residual(log_det="roulette", terms=4),
            residual(log_det="roulette", terms=5),
            r"\.terms = 4; it has 5",
        ),
        (gf.Affine(), fb.Invert(gf.Affine()), r"file's type gauss_flows\S+:Affine; it has flowjax\S+:Invert"),
        (fb.Chain([fb.Flip((2,))]), fb.Chain([fb.Flip((2,))] * 2), r"len\(\.bijections\) = 1; it has 2"),
        ({"a": 1}, {"b": 1}, r"\.keys\(\)|keys"),
    ],
)
def test_another_setting_is_refused(theirs, ours, message, path):
    gf.save(path, theirs)
    with pytest.raises(ValueError, match=f"`like` must have the .*({message})"):
        gf.load(path, ours)
    assert same(gf.load(path, theirs), theirs)


def other(value):
    """A value that differs from the one given."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, tuple):
        return (other(value[0]), *value[1:]) if value else (1,)
    if isinstance(value, jax.tree_util.PyTreeDef):
        return jax.tree.structure((1, [2]))
    return 7 if value is None else jnp.sinh


def modules(tree):
    """All equinox modules in a tree."""
    children = jax.tree.leaves(tree, is_leaf=lambda node: node is not tree)
    below = [module for child in children if child is not tree for module in modules(child)]
    return below + [tree] * isinstance(tree, eqx.Module)


@pytest.mark.parametrize("name", ["coupling_flow", "maf", "roulette", "LULinear", "attention", "RQSpline"])
def test_every_single_setting_is_compared(name, path):
    """Each static field changed alone, and each leaf that is no array."""
    flow = PUBLIC[name](jr.key(0))
    gf.save(path, flow)
    changed = 0
    for module in modules(flow):
        for field in dataclasses.fields(module):
            if field.metadata.get("static"):
                value = getattr(module, field.name)
                object.__setattr__(module, field.name, other(value))
                with pytest.raises(ValueError, match=rf"`like` must have .*{field.name}"):
                    gf.load(path, flow)
                object.__setattr__(module, field.name, value)
                changed += 1
    leaves, structure = jax.tree.flatten(flow)
    for i, leaf in enumerate(leaves):
        if not eqx.is_array(leaf):
            like = jax.tree.unflatten(structure, [*leaves[:i], other(leaf), *leaves[i + 1 :]])
            with pytest.raises(ValueError, match="`like` must have "):
                gf.load(path, like)
            changed += 1
    assert changed >= 2
    assert same(gf.load(path, flow), flow)


def scaled(x, factor):
    return factor * x


class Colour(enum.Enum):
    RED, BLUE = 1, 2


class Pair(NamedTuple):
    a: Any
    b: Any


@dataclasses.dataclass(frozen=True)
class Gain:
    factor: float

    def __call__(self, x):
        return self.factor * x


@jax.tree_util.register_pytree_node_class
class Node:
    """A node that JAX knows and dataclasses do not."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def tree_flatten(self):
        return (self.x,), self.y

    @classmethod
    def tree_unflatten(cls, y, children):
        return cls(*children, y)


VALUES = [
    (1, 2),
    (1.0, 1.5),
    (True, False),
    (True, 1),
    (None, 0),
    ("a", "b"),
    ((1, 2), (1, 3)),
    ((1, (2, 3.0)), (1, (2, 4.0))),
    ([1], [1, 1]),
    ({"a": 1}, {"a": 2}),
    ({"a": 1}, {"a": 1, "b": 1}),
    ({1: 1}, {"1": 1}),
    ({jnp.exp: 1}, {jnp.tanh: 1}),
    (types.MappingProxyType({"a": 1}), types.MappingProxyType({"a": 2})),
    (frozenset({1, 2}), frozenset({1, 3})),
    (1j, 2j),
    (b"a", b"b"),
    (range(3), range(4)),
    (slice(3), slice(4)),
    (float("inf"), float("-inf")),
    (float("nan"), 0.0),
    (np.dtype("float32"), np.dtype("float64")),
    (jnp.float32, jnp.float64),
    (Colour.RED, Colour.BLUE),
    (int, float),
    (gf.Affine, gf.RQSpline),
    (Gain(1.0), Gain(2.0)),
    (Pair(1, 2), Pair(1, 3)),
    (gf.RQSpline(2, 3.0), gf.RQSpline(2, 4.0)),
    (jax.tree.structure(gf.RQSpline(2, 3.0)), jax.tree.structure(gf.RQSpline(2, 4.0))),
    (jax.tree.structure((1, 2)), jax.tree.structure((1, (2,)))),
    (jnp.exp, jnp.tanh),
    (jnp.add, jnp.multiply),
    (np.exp, np.tanh),
    (abs, len),
    (jax.nn.relu, jax.nn.silu),
    (functools.partial(scaled, factor=1.0), functools.partial(scaled, factor=2.0)),
    (functools.partial(scaled, factor=1.0), functools.partial(Gain, factor=1.0)),
    (functools.partial(scaled, jnp.zeros(2)), functools.partial(scaled, jnp.ones(2))),
    (jax.tree_util.Partial(scaled, factor=1.0), jax.tree_util.Partial(scaled, factor=2.0)),
    (eqx.Partial(scaled, factor=1.0), eqx.Partial(scaled, factor=2.0)),
    (jax.jit(functools.partial(scaled, factor=1.0)), jax.jit(functools.partial(scaled, factor=2.0))),
    (eqx.filter_jit(Gain(1.0)), eqx.filter_jit(Gain(2.0))),
    (Gain(1.0).__call__, Gain(2.0).__call__),
    (Node(1, 2), Node(1, 3)),
    (Node(1, 2), Node(2, 2)),
    (collections.OrderedDict(a=1), collections.OrderedDict(a=2)),
]

CONSTANTS = [  # as leaves these are arrays, whose values the file gives
    (np.float32(1), np.float32(2)),
    (np.float32(1), np.float64(1)),
    (jnp.bfloat16.dtype.type(1), jnp.bfloat16.dtype.type(2)),
    (np.arange(3), np.arange(1, 4)),
    (np.zeros(2000), np.ones(2000)),
    (np.zeros(3, "float32"), np.zeros(3)),
    (np.zeros((2, 3)), np.zeros((3, 2))),
    (np.array([1j]), np.array([2j])),
    ((1, np.zeros(2)), (1, np.ones(2))),
]


@pytest.mark.parametrize(
    ("pair", "wrap"),
    [
        *(pytest.param(pair, Held, id=f"static {i}") for i, pair in enumerate(VALUES + CONSTANTS)),
        *(pytest.param(pair, lambda v: [v], id=f"leaf {i}") for i, pair in enumerate(VALUES)),
    ],
)
@pytest.mark.filterwarnings("ignore:A JAX array is being set as static")
def test_each_kind_of_value_is_compared(pair, wrap, path):
    one, another = map(wrap, pair)
    for saved, wrong in ((one, another), (another, one)):
        gf.save(path, saved)
        gf.load(path, saved)
        with pytest.raises(ValueError, match="`like` must have "):
            gf.load(path, wrong)


def test_rounding_of_the_other_machine_is_no_difference(path):
    gf.save(path, Held(0.1 + 0.2))
    gf.load(path, Held(0.3))
    with pytest.raises(ValueError, match="must have"):
        gf.load(path, Held(0.3 + 1e-12))


def local(factor):
    def activation(x):
        return factor * x

    return activation


def cyclic():
    def activation(x):
        return activation(x - 1) if x > 0 else x

    return activation


class Opaque:
    def __call__(self, x):
        return x


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (lambda x: x, r"test_structure:<lambda>"),
        (jax.jit(lambda x: x), r"test_structure:<lambda>"),
        (eqx.filter_jit(lambda x: x), r"test_structure:<lambda>"),
        (functools.partial(lambda x, y: x, y=1), r"\.value\.func \(test_structure:<lambda>"),
        (local(1.0), r"test_structure:local\.<locals>\.activation"),
        (cyclic(), r"test_structure:cyclic\.<locals>\.activation"),
        (jax.vmap(scaled), r"test_structure:scaled, decorated"),
        (jax.grad(jax.nn.softplus), r":softplus, decorated"),
        (Opaque(), r"an instance of test_structure:Opaque"),
    ],
    ids=["lambda", "jitted", "filter-jitted", "partial", "local", "cyclic", "vmap", "grad", "instance"],
)
def test_what_has_no_name_is_warned_about_once(value, named, path):
    tree = {"a": Held(value), "b": Held(value)}
    with pytest.warns(UserWarning, match=rf"The file has settings .*compared: \['a'\].*{named}") as caught:
        gf.save(path, tree)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "0x" not in str(caught[0].message)
    with pytest.warns(UserWarning, match=rf"`like` has settings .*{named}") as caught:
        gf.load(path, tree)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_what_a_nameless_function_captures_is_compared(path):
    two, three = 2.0, 3.0
    pairs = [
        (local(2.0), local(3.0), r"\.value\.factor = 2\.0; it has 3\.0"),
        (lambda x: two * x, lambda x: three * x, r"\.two = 2\.0"),
        (lambda x, c=2.0: c * x, lambda x, c=3.0: c * x, r"\.value\.c = 2\.0; it has 3\.0"),
        (lambda x, *, c=2.0: c * x, lambda x, *, c=3.0: c * x, r"\.value\.c = 2\.0; it has 3\.0"),
        (lambda x: x, local(1.0), r"<lambda>; it has test_structure:local"),
    ]
    for one, another, message in pairs:
        with pytest.warns(UserWarning, match="The file has settings"):
            gf.save(path, Held(one))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gf.load(path, Held(one))
            if "two" in message:
                with pytest.warns(UserWarning, match="only one of them has .*two.*three"):
                    gf.load(path, Held(another))
                continue
            with pytest.raises(ValueError, match=message):
                gf.load(path, Held(another))


def test_a_known_density_is_compared_with_its_numbers(path):
    """Functions of this package made inside functions: what they capture determines them."""
    make = lambda scale: Transformed(gf.targets.gaussian_mixture(scales=scale), gf.ActNorm((2,)))
    gf.save(path, make(0.25))
    gf.load(path, make(0.25))
    with pytest.raises(ValueError, match=r"`like` must have the file's setting .base_dist"):
        gf.load(path, make(0.5))


def replaced(old, new):
    def change(header):
        text = json.dumps(header["structure"])
        assert old in text
        header["structure"] = json.loads(text.replace(old, new))

    return change


def test_a_package_may_move_what_it_keeps(path):
    """Private modules of JAX and equinox are renamed between versions; a script is __main__ today."""
    flow = coupling()
    gf.save(path, flow)
    edit_header(path, replaced("jax._src.nn.functions:silu", "jax.another:silu"))
    edit_header(path, replaced("equinox.nn._mlp:MLP", "equinox.nn:MLP"))
    edit_header(path, replaced("gauss_flows.coupling:Coupling", "gauss_flows.layers:Coupling"))
    assert same(gf.load(path, flow), flow)
    edit_header(path, replaced("equinox.nn:MLP", "flax.nn:MLP"))
    with pytest.raises(
        ValueError, match=r"must have the file's setting \.conditioner = flax\.nn:MLP; it has"
    ):
        gf.load(path, flow)
    gf.save(path, Held(Gain))
    edit_header(path, replaced("test_structure:", "__main__:"))
    gf.load(path, Held(Gain))
    edit_header(path, replaced("__main__:Gain", "elsewhere:Gain"))
    with pytest.raises(ValueError, match="elsewhere:Gain; it has test_structure:Gain"):
        gf.load(path, Held(Gain))


def test_a_field_that_one_version_lacks(path):
    """Of another package: a warning. Of ours: an error, since what the file meant is unknown."""
    flow = coupling()
    gf.save(path, flow)
    whole = path.read_bytes()
    for old, new in (
        ('"in_size"', '"_older"'),
        ('"in_size": 2, ', ""),
        ('"in_size"', '"in_size": 2, "_more"'),
    ):
        path.write_bytes(whole)
        edit_header(path, replaced(old, new))
        with pytest.warns(
            UserWarning, match=r"only one of them has \.conditioner\.\w+ \(equinox\)"
        ) as caught:
            assert same(gf.load(path, flow), flow)
        assert caught[0].filename == __file__
    for old, new, message in (
        (
            '"_passive"',
            '"_older"',
            r"must have the file's setting \._older = \[0, 2\]; it has no such setting",
        ),
        ('"_passive": [0, 2], ', "", r"must have no setting \._passive, as the file; it has"),
    ):
        path.write_bytes(whole)
        edit_header(path, replaced(old, new))
        with pytest.raises(ValueError, match=message):
            gf.load(path, flow)
    scan = PUBLIC["Scan"](jr.key(0))  # our class, flowjax's field
    gf.save(path, scan)
    edit_header(path, lambda h: h["structure"]["fields"].update(_new=1))
    edit_header(path, lambda h: h["structure"]["owners"].update(_new="flowjax"))
    with pytest.warns(UserWarning, match=r"only one of them has \._new \(flowjax\)"):
        gf.load(path, scan)


DESCRIBE = """
import json, sys, gauss_flows as gf, jax.random as jr
from gauss_flows import structure
flow = gf.coupling_flow(jr.key(0), 2, layers=1, nn_width=8, actnorm=True)
block = gf.Residual(jr.key(0), shape=(2,), log_det="roulette", nn_width=8, nn_depth=1)
print(json.dumps(structure.Description().describe((flow, block, {"b", "a"}), "", stored=True)))
"""


def test_the_description_is_the_same_in_another_process(capsys):
    """No addresses, no order of sets, nothing traced."""
    env = os.environ | {"PYTHONHASHSEED": "7"}
    code = [sys.executable, "-c", DESCRIBE]
    run = subprocess.run(code, capture_output=True, text=True, check=False, env=env)
    assert run.returncode == 0, run.stderr[-2000:]
    exec(DESCRIBE, {})
    assert capsys.readouterr().out == run.stdout
    for private in ("0x", "PyTreeDef", "Pjit", "lambda x"):
        assert private not in run.stdout


def test_functions_of_libraries_are_compared_without_a_warning(tmp_path):
    """flowjax's TriangularAffine holds a decorated local function, which no user can change."""
    layer = fb.TriangularAffine(jnp.zeros(2), jnp.eye(2))
    gf.save(tmp_path / "layer.npz", layer)
    gf.load(tmp_path / "layer.npz", layer)
    with pytest.raises(ValueError, match="`like` must have the file's setting"):
        gf.load(tmp_path / "layer.npz", fb.TriangularAffine(jnp.zeros(2), jnp.eye(2), lower=False))
