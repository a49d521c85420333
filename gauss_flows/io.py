"""Save and load: arrays and settings in a NumPy archive, written atomically, read without pickle."""

import dataclasses
import enum
import functools
import hashlib
import json
import math
import os
import secrets
import sys
import types
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gauss_flows.base import expect

_FORMAT = "gauss_flows"
_VERSION = 2  # version 1 had no settings, and could hold neither random keys nor NumPy arrays
_OURS = __name__.partition(".")[0]
_LIBRARIES = {_OURS, "equinox", "flowjax", "jax", "jaxlib", "numpy", "optax", "paramax", "scipy"}
# Wrappers that compute what the wrapped function computes.
_TRANSPARENT: Any = (
    type(jax.jit(abs)),
    type(eqx.filter_jit(abs)),
    type(functools.cache(abs)),
    jax.custom_jvp,
    jax.custom_vjp,
)
_PLAIN = (bool, int, float, str, type(None))
_LISTED = 1000  # entries of a constant array up to which the file lists them; beyond, their digest


def save(path: str | os.PathLike, flow: Any) -> None:
    """Write the arrays and the settings of a flow (or of any pytree) to a file, all or nothing.

    The file is written beside its final place and moved there when it is complete, so that a crash
    leaves the old file or the new one. It is a NumPy archive with a header. The header describes the
    static structure: the classes, the functions (by qualified name) and the values of all settings that
    are not arrays, such as the interval of a spline. It holds no code: :func:`load` takes the
    structure from a flow built by the same code, and compares.

    Arrays may have any type that JAX has, ``bfloat16`` and random keys included. Arrays and scalars of
    NumPy are saved too; numbers of Python are settings.

    Args:
        path: Where to write. An existing file is replaced.
        flow: Any pytree with arrays.

    Raises:
        ValueError: If an array cannot be written, such as a traced or a deleted one (the message names
            it), or ``path`` is a folder.
        OSError: If the file cannot be written: its folder does not exist, permission is missing, or the
            disk is full. Nothing is left behind.

    Warns:
        UserWarning: If a setting cannot be described by name and value, such as a lambda: only its name
            and the values that it captures are compared, not what it computes.

    Example:
        >>> import gauss_flows as gf, jax.random as jr, tempfile, pathlib
        >>> flow = gf.AffineCoupling(jr.key(0), (4,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     gf.save(pathlib.Path(folder) / "flow.npz", flow)
        ...     again = gf.load(pathlib.Path(folder) / "flow.npz", flow)
    """
    structure = _Structure()
    described = structure.describe(flow, "", stored=True)
    _write(path, flow, {}, described)
    structure.warn("The file")


def load(path: str | os.PathLike, like: Any) -> Any:
    """Read what :func:`save` wrote into the structure of ``like``.

    Args:
        path: The file.
        like: A flow of the same structure, such as a newly built one; its arrays' values are not used.

    Returns:
        A flow with the structure of ``like`` and the arrays of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, was not written by :func:`save`, is of a newer version,
            holds arrays of other names, shapes or types than ``like``, or was saved with other settings
            (a class, a function or a value); the message says which. Floating-point settings may differ
            by rounding.

    Warns:
        UserWarning: If settings could not be compared: the file was written by version 0.1.0 or
            earlier, which stored none; a setting is a lambda or the like; or the file and ``like`` come
            from versions of another package that have different settings.
    """
    new, _, structure = _read(path, like)
    if structure is None:
        message = "holds no settings, so that only names, shapes and types of its arrays were compared"
        warnings.warn(f"The file {path} {message} with `like`; save it again.", stacklevel=2)
    else:
        structure.warn("`like`")
    return new


def write(path: str | os.PathLike, tree: Any, notes: dict[str, Any]) -> None:
    """Write the arrays of a pytree with notes (anything that JSON holds), but without its settings.

    This is for checkpoints: what must agree is for the caller to write into the notes. Otherwise as
    :func:`save`.

    Args:
        path: Where to write.
        tree: Any pytree with arrays.
        notes: What :func:`read` gives back.

    Raises:
        ValueError: As :func:`save`.
        OSError: As :func:`save`.
    """
    _write(path, tree, notes, None)


def read(path: str | os.PathLike, like: Any) -> tuple[Any, dict[str, Any]]:
    """Read what :func:`write` wrote: the tree, and the notes.

    Args:
        path: The file.
        like: A pytree of the same structure.

    Raises:
        FileNotFoundError: As :func:`load`.
        ValueError: As :func:`load`.
    """
    new, header, _ = _read(path, like)
    return new, header["notes"]


# --- arrays ---------------------------------------------------------------------------------------


def _write(path: Any, tree: Any, notes: dict[str, Any], structure: Any) -> None:
    path = _as_path(path)
    arrays: dict[str, np.ndarray] = {}
    header: dict[str, Any] = {"format": _FORMAT, "version": _VERSION, "names": [], "views": {}, "keys": {}}
    for name, leaf in _leaves(tree):
        if _is_array(leaf):
            arrays[f"a{len(arrays)}"] = _as_numpy(name, leaf, header)
            header["names"].append(name)
    header |= {"notes": notes, "structure": structure}
    content = np.frombuffer(json.dumps(header).encode(), np.uint8)
    # A name of its own, and a short one, for each write: two threads may write to one path.
    temporary = path.with_name(f".gauss_flows-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, header=content, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"`path` must lie in an existing folder; got {path}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Any, like: Any) -> tuple[Any, dict[str, Any], "_Structure | None"]:
    header, stored = _open(_as_path(path))
    structure, differences = None, []
    if header["structure"] is not None:
        structure = _Structure()
        ours = structure.describe(like, "", stored=True)
        differences = list(_differences("", header["structure"], ours))
    of_kind = lambda kind: [d for d in differences if d[0] == kind]
    _refuse(of_kind("class") + of_kind("size"))
    leaves = _leaves(like)
    theirs = {name: _stored_kind(array, header["keys"].get(name)) for name, array in stored.items()}
    use = {name for name, leaf in leaves if _is_array(leaf)}
    if header["version"] == 1:  # whether NumPy's arrays are in it depends on the version of equinox
        use -= {name for name, leaf in leaves if not isinstance(leaf, jax.Array) and name not in theirs}
    _compare_arrays(theirs, {name: _kind(leaf) for name, leaf in leaves if name in use})
    _refuse(of_kind("value"))
    _compare_fields(of_kind("field"))
    with jax.enable_x64(True):  # or arrays of double precision would be rounded without a word
        new = [_from_numpy(stored[name], leaf) if name in use else leaf for name, leaf in leaves]
    return jax.tree.unflatten(jax.tree.structure(like), new), header, structure


def _open(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header of a file, and its arrays by name."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes().decode())
            known, version = header.get("format") == _FORMAT, header.get("version")
            supported = known and version in range(1, _VERSION + 1)
            names = header["names"] if supported else []
            stored = {name: file[f"a{i}"] for i, name in enumerate(names)}
            if supported:
                header = {"views": {}, "keys": {}, "structure": None, "notes": {}} | header
                stored |= {name: stored[name].view(jnp.dtype(kind)) for name, kind in header["views"].items()}
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, EOFError, LookupError, ValueError, AttributeError, TypeError, RuntimeError) as error:
        raise ValueError(f"`path` must be a whole file that gauss_flows saved; {path}: {error}") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"`path` must be a whole file that gauss_flows saved; {path}: {error}") from error
    expect(known, "path", "be a file that gauss_flows saved", header)
    expect(supported, "path", f"be of version {_VERSION} or earlier, for this release", f"version {version}")
    return header, stored


def _as_path(path: Any) -> Path:
    try:
        found = Path(os.fsdecode(path))
    except TypeError as error:
        raise ValueError(f"`path` must be a string or a path; got {type(path).__name__}") from error
    expect(not found.is_dir(), "path", "be a file", f"the folder {found}")
    return found


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    named, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in named]


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))  # what equinox takes for one


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_numpy(name: str, leaf: Any, header: dict[str, Any]) -> np.ndarray:
    """An array that NumPy's format can hold; what it really is goes into the header."""
    if isinstance(leaf, jax.core.Tracer):
        raise ValueError(f"`flow` must hold concrete arrays, but {name} is traced; save outside of jit.")
    if isinstance(leaf, np.ndarray) and type(leaf) not in (np.ndarray, np.memmap):
        kind = type(leaf).__name__
        raise ValueError(f"`flow` must hold plain arrays, but {name} is a {kind}, which a file cannot hold.")
    if _is_key(leaf):
        header["keys"][name] = str(jax.random.key_impl(leaf))
        leaf = jax.random.key_data(leaf)
    try:
        array = np.asarray(leaf)
    except Exception as error:
        raise ValueError(f"`flow` must hold arrays that can be read, but {name} cannot: {error}") from error
    if array.dtype.hasobject:
        raise ValueError(f"`flow` must hold arrays of numbers, but {name} holds Python objects.")
    if array.dtype.isbuiltin == 2:  # registered by ml_dtypes: NumPy would write raw bytes without a name
        header["views"][name] = array.dtype.name
        array = array.view(f"u{array.dtype.itemsize}")
    return array


def _from_numpy(array: np.ndarray, leaf: Any) -> Any:
    if isinstance(leaf, (np.ndarray, np.generic)):
        return array[()] if isinstance(leaf, np.generic) else array
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return jnp.asarray(array)


def _kind(leaf: Any) -> str:
    kind = f"key<{jax.random.key_impl(leaf)}>" if _is_key(leaf) else str(np.dtype(leaf.dtype))
    return f"{kind}{list(leaf.shape)}"


def _stored_kind(array: np.ndarray, key: str | None) -> str:
    return _kind(array) if key is None else f"key<{key}>{list(array.shape[:-1])}"


def _compare_arrays(theirs: dict[str, str], ours: dict[str, str]) -> None:
    for name, kind in theirs.items():
        their, mine = f"{name} {kind}", f"{name} {ours[name]}" if name in ours else "no such array"
        precision = lambda text: text.replace("64", "32").replace("complex128", "complex32")
        same = precision(their) == precision(mine.replace("complex64", "complex32"))
        hint = "; build it in the file's precision (see jax.enable_x64)" if same and mine != their else ""
        expect(mine == their, "like", f"have the file's array {their}", f"{mine}{hint}")
    for name, kind in ours.items():
        expect(name in theirs, "like", f"have the file's {len(theirs)} arrays alone", f"also {name} {kind}")


# --- settings -------------------------------------------------------------------------------------


class _Structure:
    """Describe what is static in a pytree with what JSON holds, the same in each process and version.

    Numbers, strings, booleans and None stand for themselves; lists and tuples are lists. Everything else
    is an object with one of these keys: "array" (one that the file holds), "values" (a constant), "name"
    (a function or class), "dict", or "class" with "fields": an instance and its attributes, or a
    function that has no name of its own and what it captures.
    """

    def __init__(self) -> None:
        self.unclear: list[str] = []  # settings that name and value do not determine
        self._open: list[int] = []  # objects being described: a function may capture itself

    def warn(self, what: str) -> None:
        """Warn about the settings that cannot be compared, all at once."""
        if self.unclear:
            listed = ", ".join(self.unclear[:3]) + (", …" if len(self.unclear) > 3 else "")
            warnings.warn(
                f"{what} has settings of which no more than the name can be compared: {listed}. Functions "
                "defined at the top level of a module are compared by name, and dataclasses by their fields.",
                stacklevel=3,
            )

    def describe(self, value: Any, path: str, *, stored: bool) -> Any:
        """Describe a value; ``stored`` says that the file holds the arrays among its leaves."""
        if stored and _is_array(value):
            return {"array": None}
        if type(value) in _PLAIN:
            return value
        if id(value) in self._open:
            return {"class": _name(type(value))}
        self._open.append(id(value))
        try:
            return self._describe(value, path, stored)
        finally:
            self._open.pop()

    def _describe(self, value: Any, path: str, stored: bool) -> Any:
        if isinstance(value, (jax.Array, np.ndarray)):
            return self._constant(value, path)
        if isinstance(value, (np.generic, np.dtype, complex, bytes, range, type(...))):
            return {"values": f"{getattr(value, 'dtype', '')} {value!s}".strip()}
        if isinstance(value, enum.Enum):
            return {"name": f"{_name(type(value))}.{value.name}"}
        if isinstance(value, type):
            return {"name": _name(value)}
        if isinstance(value, jax.tree_util.PyTreeDef):
            return self._treedef(value, path)
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            if all(type(entry) in _PLAIN for entry in value):  # long masks and degrees
                return list(value)
            return [self.describe(v, f"{path}[{i}]", stored=stored) for i, v in enumerate(value)]
        if isinstance(value, (set, frozenset)):
            entries = [self.describe(v, path, stored=False) for v in value]
            return {"class": "builtins:set", "fields": {"entries": sorted(entries, key=json.dumps)}}
        if isinstance(value, (dict, types.MappingProxyType)):
            key = lambda k: repr(k) if type(k) in _PLAIN else json.dumps(self.describe(k, path, stored=False))
            named = {key(k): v for k, v in value.items()}
            entry = lambda k: self.describe(named[k], f"{path}[{k}]", stored=stored)
            return {"dict": {k: entry(k) for k in sorted(named)}}
        if isinstance(value, _TRANSPARENT) or (callable(value) and not isinstance(value, eqx.Module)):
            name = _name(value)
            if _find(name) is value:
                return {"name": name}
        if isinstance(value, _TRANSPARENT):
            return self.describe(value.__wrapped__, path, stored=stored)
        if isinstance(value, functools.partial):
            parts = {"func": value.func, "args": value.args, "keywords": value.keywords}
            inside = stored and isinstance(value, jax.tree_util.Partial)  # whose arrays JAX sees
            return self._fields("functools:partial", parts, path, parts if inside else ())
        if isinstance(value, slice):
            parts = {"start": value.start, "stop": value.stop, "step": value.step}
            return self._fields("builtins:slice", parts, path)
        if isinstance(value, types.MethodType):
            parts = {"function": value.__func__, "self": value.__self__}
            return self._fields("types:MethodType", parts, path)
        if isinstance(value, types.FunctionType):
            return self._function(value, path)
        return self._object(value, path, stored)

    def _fields(self, name: str, parts: dict[str, Any], path: str, stored: Any = ()) -> dict[str, Any]:
        describe = lambda k, v: self.describe(v, f"{path}.{k}", stored=k in stored)
        return {"class": name, "fields": {k: describe(k, v) for k, v in parts.items()}}

    def _function(self, value: types.FunctionType, path: str) -> dict[str, Any]:
        """A function without a name of its own: a lambda, or one made inside another function."""
        name = _name(value)
        if hasattr(value, "__wrapped__"):  # made by a decorator, whose captured values are its own affair
            # One made inside a library belongs to it; one with a public name may be that function's grad.
            if _package(name) not in _LIBRARIES or "<locals>" not in name:
                self.unclear.append(f"{path} ({name}, decorated)")
            return self._fields("functools:wraps", {"wrapped": value.__wrapped__}, path)
        if _package(name) not in _LIBRARIES:
            self.unclear.append(f"{path} ({name})")
        captured = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
        parts = {k: cell.cell_contents for k, cell in captured.items() if cell != types.CellType()}
        names = value.__code__.co_varnames[: value.__code__.co_argcount]
        defaults = value.__defaults__ or ()
        parts |= dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
        return self._fields(name, parts | (value.__kwdefaults__ or {}), path)

    def _object(self, value: Any, path: str, stored: bool) -> dict[str, Any]:
        """An instance: its class, and its fields or the parts that JAX knows."""
        kind, name = type(value), _name(type(value))
        one_level = lambda v: v is not value
        flat: Any = jax.tree_util.tree_flatten_with_path(value, is_leaf=one_level)
        children, node = flat
        is_node = not any(child is value for _, child in children)
        parts = {jax.tree_util.keystr(p).lstrip("."): v for p, v in children} if is_node else {}
        inside = parts if stored else ()
        is_named = isinstance(value, tuple) and hasattr(value, "_fields")
        if is_named or dataclasses.is_dataclass(value):
            names = value._fields if is_named else [f.name for f in dataclasses.fields(value)]
            fields = {n: getattr(value, n) for n in names if hasattr(value, n)}
            owners = {n: _package(_name(_owner(kind, n))) for n in fields}
            foreign = {n: owner for n, owner in owners.items() if owner != _package(name)}
            described = self._fields(name, fields, path, inside)
            return described | ({"owners": foreign} if foreign else {})
        if is_node:
            static = self.describe(node.node_data()[1], f"{path}.(static)", stored=False)
            described = self._fields(name, parts, path, inside)
            described["fields"]["(static)"] = static
            return described
        if kind is not object:  # a bare object has nothing to compare
            self.unclear.append(f"{path} (an instance of {name})")
        return {"class": name}

    def _treedef(self, value: Any, path: str) -> Any:
        """Describe the tree that the structure belongs to; its text depends on the versions."""
        leaf = object()
        try:
            tree = jax.tree.unflatten(value, [leaf] * value.num_leaves)
        except Exception:
            self.unclear.append(f"{path} (a PyTreeDef)")
            return {"class": "jax:PyTreeDef"}
        return self.describe(tree, path, stored=False)

    def _constant(self, value: Any, path: str) -> dict[str, Any]:
        """An array that is a setting: its type and shape, and its entries."""
        if isinstance(value, jax.core.Tracer):
            raise ValueError(f"`flow` must hold concrete arrays, but {path} is traced; save outside of jit.")
        array = np.asarray(jax.random.key_data(value) if _is_key(value) else value)
        described: dict[str, Any] = {"class": f"numpy:{_kind(value)}"}
        if array.dtype.hasobject:
            self.unclear.append(f"{path} (an array of Python objects)")
            return described
        entries: Any = hashlib.sha256(array.tobytes()).hexdigest()
        if array.size <= _LISTED:
            entries = [self.describe(v, path, stored=False) for v in array.ravel().tolist()]
        return described | {"fields": {"entries": entries}}


def _name(value: Any) -> str:
    """Name a function or a class, as ``module:qualname``."""
    module = getattr(value, "__module__", None) or type(value).__module__
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", type(value).__qualname__)
    return f"{module}:{name}"


def _find(name: str) -> Any:
    """What a qualified name stands for, in the modules that are loaded."""
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _package(name: str) -> str:
    return name.partition(":")[0].partition(".")[0]


def _owner(kind: type, field: str) -> type:
    """The class that introduced a field: a base may belong to another package."""
    has = lambda k: field in getattr(k, "__dataclass_fields__", {}) or field in getattr(k, "_fields", ())
    return next((k for k in reversed(kind.__mro__) if has(k)), kind)


def _same_name(theirs: str, ours: str) -> bool:
    """Whether two qualified names mean one thing: a package may move it, a script may become a module."""
    packages = {_package(theirs), _package(ours)}
    moved = len(packages) == 1 or ("__main__" in packages and not packages & _LIBRARIES)
    return theirs.partition(":")[2] == ours.partition(":")[2] and moved


def _same_value(theirs: Any, ours: Any) -> bool:
    numbers = type(theirs) in (int, float) and type(ours) in (int, float)
    if numbers and float in (type(theirs), type(ours)):
        # Powers and logarithms differ in the last bit between machines.
        return math.isclose(theirs, ours, rel_tol=1e-14) or (theirs != theirs and ours != ours)
    return type(theirs) is type(ours) and theirs == ours


def _differences(path: str, theirs: Any, ours: Any) -> Iterator[tuple[str, str, Any, Any]]:
    """Each difference of two descriptions: kind ("class", "size", "value", "field"), place, both sides."""
    is_node = isinstance(theirs, dict), isinstance(ours, dict)
    if any("array" in node for node, yes in zip((theirs, ours), is_node, strict=True) if yes):
        return  # the names of the arrays are compared besides
    if isinstance(theirs, list) and isinstance(ours, list):
        if len(theirs) != len(ours):
            yield "size", f"len({path})", len(theirs), len(ours)
            return
        for i, pair in enumerate(zip(theirs, ours, strict=True)):
            yield from _differences(f"{path}[{i}]", *pair)
    elif all(is_node) and "class" in theirs and "class" in ours:
        if not _same_name(theirs["class"], ours["class"]):
            yield "class", path, theirs, ours
            return
        owners = theirs.get("owners", {}) | ours.get("owners", {})
        one, other = theirs.get("fields", {}), ours.get("fields", {})
        for name in one | other:
            if name in one and name in other:
                yield from _differences(f"{path}.{name}", one[name], other[name])
            else:
                both = (
                    _show(one[name]) if name in one else None,
                    _show(other[name]) if name in other else None,
                )
                yield "field", f"{path}.{name}", (owners.get(name, _package(ours["class"])), *both), None
    elif all(is_node) and "dict" in theirs and "dict" in ours:
        one, other = theirs["dict"], ours["dict"]
        if set(one) != set(other):
            yield "size", f"{path}.keys()", sorted(one), sorted(other)
            return
        for key in one:
            yield from _differences(f"{path}[{key}]", one[key], other[key])
    elif all(is_node) and "name" in theirs and "name" in ours:
        if not _same_name(theirs["name"], ours["name"]):
            yield "value", path, theirs, ours
    elif not _same_value(theirs, ours):
        yield "value", path, theirs, ours


def _refuse(differences: list[tuple[str, str, Any, Any]]) -> None:
    if differences:
        _, path, theirs, ours = differences[0]
        setting = f"setting {path} = " if path else "type "
        count = len(differences) - 1
        more = f" {count} more setting{' differs' if count == 1 else 's differ'}." if count else ""
        raise ValueError(f"`like` must have the file's {setting}{_show(theirs)}; it has {_show(ours)}.{more}")


def _compare_fields(differences: list[tuple[str, str, Any, Any]]) -> None:
    """Refuse settings of our classes that one side lacks; another package may have gained or lost one."""
    for _, path, (owner, theirs, ours), _ in differences:
        if owner == _OURS and theirs is not None:
            raise ValueError(
                f"`like` must have the file's setting {path} = {theirs}; it has no such setting."
            )
        if owner == _OURS:
            raise ValueError(f"`like` must have no setting {path}, as the file; it has {path} = {ours}.")
    if differences:
        places = ", ".join(f"{path} ({owner})" for _, path, (owner, *_), _ in differences[:3])
        warnings.warn(
            f"The file and `like` do not have the same settings, perhaps because they come from different "
            f"versions of a package: only one of them has {places}. These settings were not compared.",
            stacklevel=4,
        )


def _show(node: Any) -> str:
    """A setting as an error shows it, at most one line."""
    if isinstance(node, dict):
        node = node.get("class") or node.get("name") or node.get("values") or node.get("dict", "an array")
        text = str(node)
    else:
        text = repr(node)
    return text if len(text) <= 100 else f"{text[:97]}…"
