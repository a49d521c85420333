"""Tests of ``gauss_flows.io``."""

import contextlib
import errno
import io
import json
import os
import pathlib
import threading
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from file_support import PUBLIC, Held, bits, blank, coupling, edit_header
from file_support import same as same_of_file
from training_support import leaves, same, small

import gauss_flows as gf
from gauss_flows import io as files

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_save_and_load(tmp_path):
    path = tmp_path / "a file.npz"
    flow = small(jr.key(1))
    gf.save(path, flow)
    assert len(leaves(flow)) > 10  # a10 sorts before a2
    assert same(gf.load(path, small()), flow)
    assert not same(small(), flow)
    assert [p.name for p in tmp_path.iterdir()] == ["a file.npz"]


def test_load_says_what_is_wrong(tmp_path):
    path = tmp_path / "flow.npz"
    gf.save(path, small())
    with pytest.raises(ValueError, match=r"`like` must have the file's array .*float32\[2, 8, 1\].*got"):
        gf.load(path, gf.coupling_flow(jr.key(0), 2, layers=2, bijector=gf.Affine(), nn_width=16))
    with pytest.raises(ValueError, match="`like` must have"):
        gf.load(path, gf.Affine())
    whole = path.read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("foreign", b"hello" * 100)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="`path` must be a whole file that gauss_flows saved"):
            gf.load(tmp_path / name, small())
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(ValueError, match="`path` must be a whole file"):
        gf.load(tmp_path / "other.npz", small())
    np.savez(tmp_path / "pickled.npz", header=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="`path` must be a whole file"):
        gf.load(tmp_path / "pickled.npz", small())
    with pytest.raises(FileNotFoundError):
        gf.load(tmp_path / "none", small())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "flow.npz"
    gf.save(path, small(jr.key(1)))
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        gf.save(path, small(jr.key(2)))
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


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
    assert not same_of_file(saved, like)
    assert same_of_file(gf.load(path, like), saved)


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
        assert same_of_file(gf.load(path, like), saved)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    tree, notes = files.read(path, like)  # a checkpoint has a fingerprint of its own: no warning
    assert same_of_file(tree, saved)
    assert notes == {"run": 3}
    with pytest.raises(ValueError, match="`like` must have the file's array"):
        gf.load(path, make(jr.key(0)) | {"flow": coupling(shape=(2, 2), cond_dim=1)})
    write_version_1(path, saved | {"mask": None})  # older versions of equinox took it for a constant
    with pytest.warns(UserWarning, match=message):
        assert same_of_file(gf.load(path, like), saved)


@pytest.mark.parametrize("version", [0, 3, None, "2"])
def test_another_version_is_refused(version, path):
    gf.save(path, gf.Affine())
    edit_header(path, lambda header: header.update(version=version))
    with pytest.raises(
        ValueError, match=f"`path` must be a file of format version 2 or earlier.*got version {version}"
    ):
        gf.load(path, gf.Affine())


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
    assert same_of_file(loaded, tree)
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
    assert same_of_file(gf.load(path, like), tree)


def test_a_flow_in_half_precision(path):
    half = lambda flow: jax.tree.map(lambda a: a.astype(jnp.bfloat16) if eqx.is_inexact_array(a) else a, flow)
    saved = half(gf.AffineCoupling(jr.key(0), (2,), nn_width=8))
    gf.save(path, saved)
    assert same_of_file(gf.load(path, half(gf.AffineCoupling(jr.key(1), (2,), nn_width=8))), saved)
    with pytest.raises(
        ValueError, match=r"`like` must have the file's array .* bfloat16\[.*; got .* float32\["
    ):
        gf.load(path, gf.AffineCoupling(jr.key(1), (2,), nn_width=8))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_random_keys(impl, path):
    make = lambda seed: {"one": jr.key(seed, impl=impl), "many": jr.split(jr.key(seed + 1, impl=impl), 3)}
    gf.save(path, make(0))
    loaded = gf.load(path, make(5))
    assert same_of_file(loaded, make(0))
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
    assert same_of_file(gf.load(path, raw), raw)


def test_precision_is_named(path):
    with jax.enable_x64(True):
        double = gf.ActNorm((2,))
    single = gf.ActNorm((2,))
    for saved, like, wanted in ((single, double, "float32"), (double, single, "float64")):
        gf.save(path, saved)
        message = rf"file's array \.log_scale {wanted}\[2\]; got .*; build it in the file's precision"
        with pytest.raises(ValueError, match=message):
            gf.load(path, like)
    gf.save(path, double)
    assert same_of_file(gf.load(path, double), double)


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
    assert same_of_file(loaded, state)
    assert notes["run"] == "a"
    assert np.isnan(notes["losses"][1])
    with pytest.raises(ValueError, match="`like` must have the file's array"):
        files.read(path, (params, optax.sgd(1.0, momentum=0.5).init(numbers), np.arange(3)))
    files.write(path, Held(lambda x: x), {})
    files.read(path, Held(lambda x: x))
    with pytest.warns(UserWarning, match="holds no settings"):
        gf.load(path, Held(1))


def test_strings_and_paths_name_a_file(tmp_path):
    flow = gf.ActNorm((2,))

    class Pathlike:
        def __fspath__(self):
            return str(tmp_path / "c.npz")

    for path in (str(tmp_path / "a.npz"), tmp_path / "b", Pathlike(), os.fsencode(tmp_path / "d")):
        gf.save(path, flow)
        assert same_of_file(gf.load(path, flow), flow)
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
    old, new = gf.ActNorm((2,)), gf.ActNorm((3,))
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
        assert same_of_file(gf.load(self, flow), flow)
        return replace(self, target)

    flow = gf.ActNorm((2,))
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
    flows = [eqx.tree_at(lambda a: a.bias, gf.ActNorm((2,)), jnp.full(2, float(i))) for i in range(4)]
    threads = [threading.Thread(target=lambda f=f: [gf.save(path, f) for _ in range(5)]) for f in flows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loaded = gf.load(path, flows[0])
    assert any(same_of_file(loaded, flow) for flow in flows)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_damaged_file_is_refused_or_gives_the_saved_numbers(path):
    """Cut anywhere, one bit turned anywhere: never other numbers, never another exception."""
    flow = eqx.tree_at(lambda a: a.bias, gf.ActNorm((2,)), jnp.array([1.5, -2.0]))
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
            assert same_of_file(gf.load(path, flow), flow)
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


def test_files_with_old_names_of_fields_and_classes_load(path):
    """`_family` of a `Family` is `_bijector` of a `Parametrized` now, and `ActNorm1D` is `ActNorm`."""
    flow = small(actnorm=True)
    gf.save(path, flow)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    text = arrays["header"].tobytes().decode()
    for new, old in (
        ("._bijector.", "._family."),
        ('"_bijector"', '"_family"'),
        (':Parametrized"', ':Family"'),
        (':ActNorm"', ':ActNorm1D"'),
    ):
        assert new in text
        text = text.replace(new, old)
    arrays["header"] = np.frombuffer(text.encode(), np.uint8)
    np.savez(path, **arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_of_file(gf.load(path, blank(flow)), flow)
