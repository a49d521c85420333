"""The static structure of a flow as names and values, which a file can carry and compare."""

import dataclasses
import enum
import functools
import hashlib
import json
import math
import sys
import types
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

Json: TypeAlias = Any  # what JSON can hold
Value: TypeAlias = Any  # what a field of a module may hold, which is anything
Difference: TypeAlias = tuple[str, str, Json, Json]  # kind, place, and both sides

_OURS = __name__.partition(".")[0]

_LIBRARIES = {_OURS, "equinox", "flowjax", "jax", "jaxlib", "numpy", "optax", "paramax", "scipy"}

# Wrappers that compute what the wrapped function computes.
_TRANSPARENT: tuple[type, ...] = (
    type(jax.jit(abs)),
    type(eqx.filter_jit(abs)),
    type(functools.cache(abs)),
    jax.custom_jvp,
    jax.custom_vjp,
)

_PLAIN = (bool, int, float, str, type(None))

_LISTED = 1000  # entries of a constant array up to which the file lists them; beyond, their digest


# --- settings -------------------------------------------------------------------------------------
class Description:
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

    def describe(self, value: Value, path: str, *, stored: bool) -> Json:
        """Describe a value; ``stored`` says that the file holds the arrays among its leaves."""
        if stored and is_array(value):
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

    def _describe(self, value: Value, path: str, stored: bool) -> Json:
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
            return self.describe(getattr(value, "__wrapped__"), path, stored=stored)  # noqa: B009
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

    def _fields(
        self, name: str, parts: dict[str, Json], path: str, stored: Iterable[str] = ()
    ) -> dict[str, Json]:
        describe = lambda k, v: self.describe(v, f"{path}.{k}", stored=k in stored)
        return {"class": name, "fields": {k: describe(k, v) for k, v in parts.items()}}

    def _function(self, value: types.FunctionType, path: str) -> dict[str, Json]:
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

    def _object(self, value: Value, path: str, stored: bool) -> dict[str, Json]:
        """An instance: its class, and its fields or the parts that JAX knows."""
        kind, name = type(value), _name(type(value))
        one_level = lambda v: v is not value
        flat: PyTree = jax.tree_util.tree_flatten_with_path(value, is_leaf=one_level)
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

    def _treedef(self, value: Value, path: str) -> Json:
        """Describe the tree that the structure belongs to; its text depends on the versions."""
        leaf = object()
        try:
            tree = jax.tree.unflatten(value, [leaf] * value.num_leaves)
        except Exception:
            self.unclear.append(f"{path} (a PyTreeDef)")
            return {"class": "jax:PyTreeDef"}
        return self.describe(tree, path, stored=False)

    def _constant(self, value: Value, path: str) -> dict[str, Json]:
        """An array that is a setting: its type and shape, and its entries."""
        if isinstance(value, jax.core.Tracer):
            raise ValueError(f"`flow` must hold concrete arrays, but {path} is traced; save outside of jit.")
        array = np.asarray(jax.random.key_data(value) if is_key(value) else value)
        described: dict[str, Json] = {"class": f"numpy:{kind_of(value)}"}
        if array.dtype.hasobject:
            self.unclear.append(f"{path} (an array of Python objects)")
            return described
        entries: Json = hashlib.sha256(array.tobytes()).hexdigest()
        if array.size <= _LISTED:
            entries = [self.describe(v, path, stored=False) for v in array.ravel().tolist()]
        return described | {"fields": {"entries": entries}}


def _name(value: Value) -> str:
    """Name a function or a class, as ``module:qualname``."""
    module = getattr(value, "__module__", None) or type(value).__module__
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", type(value).__qualname__)
    return f"{module}:{name}"


def _find(name: str) -> PyTree:
    """What a qualified name stands for, in the modules that are loaded."""
    module, _, qualname = name.partition(":")
    found: Value = sys.modules.get(module)
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


def _same_value(theirs: Json, ours: Json) -> bool:
    numbers = type(theirs) in (int, float) and type(ours) in (int, float)
    if numbers and float in (type(theirs), type(ours)):
        # Powers and logarithms differ in the last bit between machines.
        return math.isclose(theirs, ours, rel_tol=1e-14) or (theirs != theirs and ours != ours)
    return type(theirs) is type(ours) and theirs == ours


def differences(path: str, theirs: Json, ours: Json) -> Iterator[Difference]:
    """Each difference of two descriptions: kind ("class", "size", "value", "field"), place, both sides."""
    is_node = isinstance(theirs, dict), isinstance(ours, dict)
    if any("array" in node for node, yes in zip((theirs, ours), is_node, strict=True) if yes):
        return  # the names of the arrays are compared besides
    if isinstance(theirs, list) and isinstance(ours, list):
        if len(theirs) != len(ours):
            yield "size", f"len({path})", len(theirs), len(ours)
            return
        for i, pair in enumerate(zip(theirs, ours, strict=True)):
            yield from differences(f"{path}[{i}]", *pair)
    elif all(is_node) and "class" in theirs and "class" in ours:
        if not _same_name(theirs["class"], ours["class"]):
            yield "class", path, theirs, ours
            return
        owners = theirs.get("owners", {}) | ours.get("owners", {})
        one, other = theirs.get("fields", {}), ours.get("fields", {})
        for name in one | other:
            if name in one and name in other:
                yield from differences(f"{path}.{name}", one[name], other[name])
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
            yield from differences(f"{path}[{key}]", one[key], other[key])
    elif all(is_node) and "name" in theirs and "name" in ours:
        if not _same_name(theirs["name"], ours["name"]):
            yield "value", path, theirs, ours
    elif not _same_value(theirs, ours):
        yield "value", path, theirs, ours


def refuse(differences: list[Difference]) -> None:
    """Raise a ``ValueError`` about the first difference, if there is one."""
    if differences:
        _, path, theirs, ours = differences[0]
        setting = f"setting {path} = " if path else "type "
        count = len(differences) - 1
        more = f" {count} more setting{' differs' if count == 1 else 's differ'}." if count else ""
        raise ValueError(f"`like` must have the file's {setting}{_show(theirs)}; it has {_show(ours)}.{more}")


def compare_fields(differences: list[Difference]) -> None:
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


def _show(node: Json) -> str:
    """A setting as an error shows it, at most one line."""
    if isinstance(node, dict):
        node = node.get("class") or node.get("name") or node.get("values") or node.get("dict", "an array")
        text = str(node)
    else:
        text = repr(node)
    return text if len(text) <= 100 else f"{text[:97]}…"


def is_array(leaf: PyTree) -> bool:
    """Return whether a leaf is an array, as equinox understands it."""
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


def is_key(leaf: PyTree) -> bool:
    """Return whether a leaf is an array of random keys."""
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def kind_of(leaf: PyTree) -> str:
    """Return an array's type and shape, as an error message shows them."""
    kind = f"key<{jax.random.key_impl(leaf)}>" if is_key(leaf) else str(np.dtype(leaf.dtype))
    return f"{kind}{list(leaf.shape)}"
