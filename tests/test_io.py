"""Files: what save writes, load gives back to the last bit; what differs otherwise is named."""

import collections
import contextlib
import dataclasses
import enum
import errno
import functools
import io
import json
import os
import pathlib
import subprocess
import sys
import threading
import types
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from flowjax.distributions import Transformed
from test_bijections import CASES

import gauss_flows as gf
from gauss_flows import io as files

pytestmark = pytest.mark.usefixtures("quick_compilation")


def small(key=None, bijector=None, **options):
    key, bijector = jr.key(0) if key is None else key, gf.Affine() if bijector is None else bijector
    return gf.coupling_flow(key, 2, layers=2, nn_width=8, bijector=bijector, **options)


def bits(leaf):
    """Type, shape and bytes of an array; anything else as it is."""
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(jr.key_impl(leaf)), np.asarray(jr.key_data(leaf)).tobytes(), leaf.shape
    if isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        kind = "jax" if isinstance(leaf, jax.Array) else type(leaf)
        return kind, leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()
    return leaf


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        bits(x) == bits(y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def blank(tree):
    """The same structure with other numbers."""
    return jax.tree.map(lambda a: jnp.full_like(a, 7) if eqx.is_inexact_array(a) else a, tree)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "flow.npz"


FLOWS = {
    "coupling_flow": lambda k: gf.coupling_flow(k, 2, layers=2, nn_width=8, actnorm=True, cond_dim=1),
    "coupling_flow, householder": lambda k: small(k, gf.DeepSigmoid(2), mixing="householder"),
    "maf": lambda k: gf.maf(k, 2, layers=2, nn_width=8),
    "iaf": lambda k: gf.iaf(k, 2, layers=2, nn_width=8, bijector=gf.bijectors.exp_affine(2.0)),
    "residual_flow": lambda k: gf.residual_flow(k, 2, layers=2, nn_width=8),
    "gaussianization_flow": lambda k: gf.gaussianization_flow(
        k, 2, layers=1, bijector=gf.MixtureGaussianCDF(2)
    ),
    "roulette": lambda k: gf.with_log_det(
        gf.Residual(k, shape=(2,), log_det="roulette", nn_width=8), key=jr.key(1)
    ),
    **{
        name: lambda k, factory=factory: gf.Coupling(
            k, shape=(4,), bijector=fb.RationalQuadraticSpline(knots=3, interval=2), conditioner=factory
        )
        for name, factory in {
            "resnet": gf.conditioners.resnet(8, 1),
            "shared_trunk": gf.conditioners.shared_trunk(8, 1, 2),
            "attention": gf.conditioners.attention(8, 1),
        }.items()
    },
}
PUBLIC = {name: case.make for name, case in CASES.items() if "," not in name} | FLOWS


DOUBLE = ("RQSpline", "AffineCoupling", "roulette")  # the others in both precisions by `make nightly`


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(pytest.param(name, "float32", id=f"{name}-float32") for name in PUBLIC),
        *(
            pytest.param(
                name,
                "float64",
                id=f"{name}-float64",
                marks=[] if name in DOUBLE else [pytest.mark.nightly],
            )
            for name in PUBLIC
        ),
    ],
    indirect=["dtype"],
)
def test_every_layer_and_flow_comes_back_to_the_last_bit(name, dtype, path):
    """Without a warning too, which would be an error here: all settings are compared by value."""
    saved = PUBLIC[name](jr.key(3))
    assert any(bits(leaf)[1] == jnp.dtype(dtype) for leaf in jax.tree.leaves(eqx.filter(saved, eqx.is_array)))
    gf.save(path, saved)
    like = blank(saved)
    assert not same(saved, like)
    assert same(gf.load(path, like), saved)


# --- settings -------------------------------------------------------------------------------------


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


def coupling(activation=jax.nn.silu, mask=(True, False, True, False), shape=(4,), cond_dim=None, key=None):
    network = gf.conditioners.mlp(8, 1, activation=activation)
    key = jr.key(0) if key is None else key
    mask = np.array(mask).reshape(shape)
    options = {"shape": shape, "mask": mask, "cond_dim": cond_dim}
    return gf.Coupling(key, bijector=gf.Affine(), conditioner=network, **options)


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


class Held(eqx.Module):
    """Anything at all in a static field, and an array beside it."""

    value: Any = eqx.field(static=True)
    array: Any = eqx.field(default_factory=lambda: jnp.zeros(2))


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
        (lambda x: x, r"test_io:<lambda>"),
        (jax.jit(lambda x: x), r"test_io:<lambda>"),
        (eqx.filter_jit(lambda x: x), r"test_io:<lambda>"),
        (functools.partial(lambda x, y: x, y=1), r"\.value\.func \(test_io:<lambda>"),
        (local(1.0), r"test_io:local\.<locals>\.activation"),
        (cyclic(), r"test_io:cyclic\.<locals>\.activation"),
        (jax.vmap(scaled), r"test_io:scaled, decorated"),
        (jax.grad(jax.nn.softplus), r":softplus, decorated"),
        (Opaque(), r"an instance of test_io:Opaque"),
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
        (lambda x: x, local(1.0), r"<lambda>; it has test_io:local"),
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
    make = lambda scale: Transformed(gf.targets.gaussian_mixture(scales=scale), gf.ActNorm1D((2,)))
    gf.save(path, make(0.25))
    gf.load(path, make(0.25))
    with pytest.raises(ValueError, match=r"`like` must have the file's setting .base_dist"):
        gf.load(path, make(0.5))


def edit_header(path, change):
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    header = json.loads(content["header"].tobytes())
    change(header)
    content["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(path, **content)


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
    edit_header(path, replaced("test_io:", "__main__:"))
    gf.load(path, Held(Gain))
    edit_header(path, replaced("__main__:Gain", "elsewhere:Gain"))
    with pytest.raises(ValueError, match="elsewhere:Gain; it has test_io:Gain"):
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
from gauss_flows import io
flow = gf.coupling_flow(jr.key(0), 2, layers=1, nn_width=8, actnorm=True)
block = gf.Residual(jr.key(0), shape=(2,), log_det="roulette", nn_width=8, nn_depth=1)
print(json.dumps(io._Structure().describe((flow, block, {"b", "a"}), "", stored=True)))
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


# --- version 1 ------------------------------------------------------------------------------------


def write_version_1(path, tree, notes=None):
    """The layout of gauss_flows 0.1.0: names and arrays, no settings."""
    named, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(tree, eqx.is_array))
    names = [jax.tree_util.keystr(p) for p, _ in named]
    header = {"format": "gauss_flows", "version": 1, "names": names, "notes": notes or {}}
    arrays = {f"a{i}": np.asarray(leaf) for i, (_, leaf) in enumerate(named)}
    with path.open("wb") as file:
        np.savez(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)


def test_files_of_version_1_load_with_a_warning(path):
    make = lambda key: {"flow": coupling(key=key), "mask": np.array([True]), "number": 3.0}
    saved, like = make(jr.key(1)), make(jr.key(0))
    write_version_1(path, saved, {"run": 3})
    message = f"The file {path} holds no settings, so that .* save it again"
    with pytest.warns(UserWarning, match=message) as caught:
        assert same(gf.load(path, like), saved)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    tree, notes = files.read(path, like)  # a checkpoint has a fingerprint of its own: no warning
    assert same(tree, saved)
    assert notes == {"run": 3}
    with pytest.raises(ValueError, match="`like` must have the file's array"):
        gf.load(path, make(jr.key(0)) | {"flow": coupling(shape=(2, 2), cond_dim=1)})
    write_version_1(path, saved | {"mask": None})  # older versions of equinox took it for a constant
    with pytest.warns(UserWarning, match=message):
        assert same(gf.load(path, like), saved)


@pytest.mark.parametrize("version", [0, 3, None, "2"])
def test_another_version_is_refused(version, path):
    gf.save(path, gf.Affine())
    edit_header(path, lambda header: header.update(version=version))
    with pytest.raises(ValueError, match=f"`path` must be of version 2 or earlier.*got version {version}"):
        gf.load(path, gf.Affine())


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        *("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4", "float16", "float32", "float64"),
        *("bool", "int8", "int64", "uint32", "complex64", "complex128"),
    ],
)
def test_arrays_of_every_type(kind, path):
    with jax.enable_x64(True):
        numbers = np.array([[0, 1, 3], [2, 1, 0]]).astype(jnp.dtype(kind))
        tree = {"matrix": jnp.asarray(numbers), "scalar": jnp.asarray(numbers[0, 2]), "numpy": numbers.T}
        tree["empty"] = jnp.zeros((0, 2), kind)
        assert tree["matrix"].dtype == jnp.dtype(kind)
    gf.save(path, tree)
    loaded = gf.load(path, tree)  # outside of x64, which must not round
    assert same(loaded, tree)
    assert type(loaded["numpy"]) is np.ndarray
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype.kind in "biufc" for name in file.files)


def test_values_that_compare_oddly_come_back_to_the_last_bit(path):
    tree = [
        jnp.array([np.nan, -0.0, np.inf, -np.inf, 1e-45]),
        np.array([np.nan, -0.0]),
        np.array(["a", "bc"]),
    ]
    tree += [np.array([1.0], ">f8"), np.array(["2026-01-01"], "M8[D]"), np.asfortranarray(np.eye(2, 3))]
    tree += [np.float64(1.5), np.float32(2), np.bool_(True), np.complex64(1j), jnp.bfloat16.dtype.type(3)]
    gf.save(path, tree)
    like = [jnp.zeros(5), *(np.zeros_like(leaf)[()] for leaf in tree[1:])]
    assert same(gf.load(path, like), tree)


def test_a_flow_in_half_precision(path):
    half = lambda flow: jax.tree.map(lambda a: a.astype(jnp.bfloat16) if eqx.is_inexact_array(a) else a, flow)
    saved = half(gf.AffineCoupling(jr.key(0), (2,), nn_width=8))
    gf.save(path, saved)
    assert same(gf.load(path, half(gf.AffineCoupling(jr.key(1), (2,), nn_width=8))), saved)
    with pytest.raises(
        ValueError, match=r"`like` must have the file's array .* bfloat16\[.*; got .* float32\["
    ):
        gf.load(path, gf.AffineCoupling(jr.key(1), (2,), nn_width=8))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_random_keys(impl, path):
    make = lambda seed: {"one": jr.key(seed, impl=impl), "many": jr.split(jr.key(seed + 1, impl=impl), 3)}
    gf.save(path, make(0))
    loaded = gf.load(path, make(5))
    assert same(loaded, make(0))
    assert (jr.normal(loaded["many"][1], (2,)) == jr.normal(make(0)["many"][1], (2,))).all()
    with pytest.raises(ValueError, match=rf"file's array \['many'\] key<{impl}>\[3\]; got .*key<.*>\[2\]"):
        gf.load(path, make(5) | {"many": jr.split(jr.key(0, impl=impl), 2)})
    another = "rbg" if impl == "threefry2x32" else "threefry2x32"
    with pytest.raises(ValueError, match=f"key<{impl}>.*got .*key<{another}>"):
        gf.load(path, make(5) | {"many": jr.split(jr.key(0, impl=another), 3)})
    raw = jax.tree.map(jr.key_data, make(0))
    with pytest.raises(ValueError, match=rf"key<{impl}>.*got .*uint32"):
        gf.load(path, raw)
    gf.save(path, raw)
    assert same(gf.load(path, raw), raw)


def test_precision_is_named(path):
    with jax.enable_x64(True):
        double = gf.ActNorm1D((2,))
    single = gf.ActNorm1D((2,))
    for saved, like, wanted in ((single, double, "float32"), (double, single, "float64")):
        gf.save(path, saved)
        message = rf"file's array \.log_scale {wanted}\[2\]; got .*; build it in the file's precision"
        with pytest.raises(ValueError, match=message):
            gf.load(path, like)
    gf.save(path, double)
    assert same(gf.load(path, double), double)


def test_missing_and_additional_arrays_are_named(path):
    one, two = {"a": jnp.zeros(2)}, {"a": jnp.zeros(2), "b": jnp.ones(3)}
    write_version_1(path, two)
    with pytest.raises(ValueError, match=r"file's array \['b'\] float32\[3\]; got no such array"):
        gf.load(path, one)
    write_version_1(path, one)
    with pytest.raises(ValueError, match=r"file's 1 arrays alone; got also \['b'\] float32\[3\]"):
        gf.load(path, two)
    gf.save(path, {"a": None})
    with pytest.raises(ValueError, match=r"`like` must have"):
        gf.load(path, one)
    gf.save(path, one)
    with pytest.raises(ValueError, match=r"file's array \['a'\] float32\[2\]; got no such array"):
        gf.load(path, {"a": None})


def deleted():
    array = jnp.zeros(2) + 1
    array.delete()
    return array


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (np.array([{}, 1], object), "holds Python objects"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "is a MaskedArray"),
        (deleted(), "cannot: .*deleted"),
    ],
    ids=["objects", "masked", "deleted"],
)
def test_a_leaf_that_cannot_be_saved_is_named(leaf, reason, path):
    with pytest.raises(ValueError, match=rf"`flow` must hold .*, but \['x'\]\[1\] {reason}"):
        gf.save(path, {"x": [jnp.zeros(1), leaf]})
    assert list(path.parent.iterdir()) == []


def test_a_traced_leaf_is_named(path):
    def traced(a):
        gf.save(path, {"x": a})
        return a

    with pytest.raises(ValueError, match=r"`flow` must hold concrete arrays, but \['x'\] is traced"):
        jax.jit(traced)(jnp.zeros(2))
    assert list(path.parent.iterdir()) == []


def test_checkpoints_hold_any_state_of_optax(path):
    """Their settings are closures, which are not compared: whoever writes the notes compares."""
    params = {"w": jnp.ones((2, 2), jnp.bfloat16), "key": jr.key(0)}
    numbers = eqx.filter(params, eqx.is_inexact_array)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1.0, 9)))
    state = (params, optimizer.init(numbers), np.arange(3))
    files.write(path, state, {"run": "a", "losses": [1.0, float("nan")]})
    loaded, notes = files.read(path, state)
    assert same(loaded, state)
    assert notes["run"] == "a"
    assert np.isnan(notes["losses"][1])
    with pytest.raises(ValueError, match="`like` must have the file's array"):
        files.read(path, (params, optax.sgd(1.0, momentum=0.5).init(numbers), np.arange(3)))
    files.write(path, Held(lambda x: x), {})
    files.read(path, Held(lambda x: x))
    with pytest.warns(UserWarning, match="holds no settings"):
        gf.load(path, Held(1))


# --- the file -------------------------------------------------------------------------------------


def test_strings_and_paths_name_a_file(tmp_path):
    flow = gf.ActNorm1D((2,))

    class Pathlike:
        def __fspath__(self):
            return str(tmp_path / "c.npz")

    for path in (str(tmp_path / "a.npz"), tmp_path / "b", Pathlike(), os.fsencode(tmp_path / "d")):
        gf.save(path, flow)
        assert same(gf.load(path, flow), flow)
    assert {p.name for p in tmp_path.iterdir()} == {"a.npz", "b", "c.npz", "d"}
    gf.save(tmp_path / ("x" * 255), flow)
    for wrong in (3, None, io.BytesIO()):
        for call in (gf.save, gf.load):
            with pytest.raises(
                ValueError, match=f"`path` must be a string or a path; got {type(wrong).__name__}"
            ):
                call(wrong, flow)


def test_a_folder_is_no_file(tmp_path):
    for call in (gf.save, gf.load):
        for path in (tmp_path, "", "."):
            with pytest.raises(ValueError, match="`path` must be a file; got the folder"):
                call(path, gf.Affine())
    with pytest.raises(FileNotFoundError, match=r"`path` must lie in an existing folder; got .*none"):
        gf.save(tmp_path / "none" / "flow.npz", gf.Affine())
    with pytest.raises(FileNotFoundError):
        gf.load(tmp_path / "none", gf.Affine())
    assert list(tmp_path.iterdir()) == []


def raising(error):
    def function(*args, **kwargs):
        raise error

    return function


@pytest.mark.parametrize(
    ("module", "name"), [(np, "savez"), (os, "fsync"), (pathlib.Path, "replace"), (pathlib.Path, "open")]
)
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "disk full"), PermissionError(errno.EACCES, "no"), KeyboardInterrupt()]
)
def test_a_failed_write_leaves_the_old_file_alone(module, name, error, path, monkeypatch):
    old, new = gf.ActNorm1D((2,)), gf.ActNorm1D((3,))
    gf.save(path, old)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(module, name, raising(error))
        with pytest.raises(type(error)):
            gf.save(path, new)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_file_is_complete_before_it_has_its_name(path, monkeypatch):
    order = []
    replace, fsync = pathlib.Path.replace, os.fsync

    def watched(self, target):
        order.append("replace")
        assert same(gf.load(self, flow), flow)
        return replace(self, target)

    flow = gf.ActNorm1D((2,))
    monkeypatch.setattr(os, "fsync", lambda fd: order.append("fsync") or fsync(fd))
    monkeypatch.setattr(pathlib.Path, "replace", watched)
    gf.save(path, flow)
    assert order == ["fsync", "replace"]


def test_permission_is_named(path, monkeypatch):
    gf.save(path, gf.Affine())
    monkeypatch.setattr(pathlib.Path, "open", raising(PermissionError(errno.EACCES, "no")))
    with pytest.raises(PermissionError):
        gf.load(path, gf.Affine())


def test_threads_may_write_one_path(path):
    flows = [eqx.tree_at(lambda a: a.bias, gf.ActNorm1D((2,)), jnp.full(2, float(i))) for i in range(4)]
    threads = [threading.Thread(target=lambda f=f: [gf.save(path, f) for _ in range(5)]) for f in flows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loaded = gf.load(path, flows[0])
    assert any(same(loaded, flow) for flow in flows)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_damaged_file_is_refused_or_gives_the_saved_numbers(path):
    """Cut anywhere, one bit turned anywhere: never other numbers, never another exception."""
    flow = eqx.tree_at(lambda a: a.bias, gf.ActNorm1D((2,)), jnp.array([1.5, -2.0]))
    gf.save(path, flow)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:n] for n in rng.integers(0, len(whole), 60)]
    for at in rng.integers(0, len(whole), 240):
        damaged.append(whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1 :])
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        with contextlib.suppress(ValueError), warnings.catch_warnings():
            refused += 1
            warnings.simplefilter("ignore")
            assert same(gf.load(path, flow), flow)
            refused -= 1
    assert refused > 100


def test_foreign_files_are_refused(path):
    np.save(path.with_suffix(".npy"), np.ones(3))
    np.savez(path, header=np.array([{}], object))
    np.savez(path.with_name("list.npz"), header=np.frombuffer(b"[]", np.uint8))
    np.savez(path.with_name("none.npz"), a=np.ones(2))
    for file in path.parent.iterdir():
        with pytest.raises(ValueError, match="`path` must be a whole file that gauss_flows saved"):
            gf.load(file, gf.Affine())
    np.savez(path, header=np.frombuffer(b'{"format": "other", "version": 2}', np.uint8))
    with pytest.raises(ValueError, match="`path` must be a file that gauss_flows saved"):
        gf.load(path, gf.Affine())


def test_functions_of_libraries_are_compared_without_a_warning(tmp_path):
    """flowjax's TriangularAffine holds a decorated local function, which no user can change."""
    layer = fb.TriangularAffine(jnp.zeros(2), jnp.eye(2))
    gf.save(tmp_path / "layer.npz", layer)
    gf.load(tmp_path / "layer.npz", layer)
    with pytest.raises(ValueError, match="`like` must have the file's setting"):
        gf.load(tmp_path / "layer.npz", fb.TriangularAffine(jnp.zeros(2), jnp.eye(2), lower=False))
