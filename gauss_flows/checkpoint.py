"""Checkpoints: what tells one training run from another."""

import hashlib
import os
import re
from importlib.metadata import PackageNotFoundError, version

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var
from jaxtyping import PyTree

from gauss_flows.structure import Json

_PACKAGES = ("jax", "equinox", "flowjax", "optax", "gauss_flows")  # what decides how a program is traced


def fingerprint(parts: dict[str, PyTree], program: ClosedJaxpr) -> dict[str, Json]:
    """Return what a checkpoint records of its run: digests, and the versions it was made under.

    Args:
        parts: The arrays and values that make the run, each under the name that an error gives it.
        program: The traced update, from ``jax.make_jaxpr``.
    """
    return {
        "parts": {name: digest(part) for name, part in parts.items()},
        "program": digest(program),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # imported from a folder, not installed
        return "not installed"


def expect_same_run(path: str | os.PathLike, notes: dict[str, Json], mark: dict[str, Json]) -> None:
    """Refuse a checkpoint of another run.

    Args:
        path: The file's name, for the message.
        notes: The file's notes; under "run" the :func:`fingerprint` of its run.
        mark: The fingerprint of this run.

    Raises:
        ValueError: If the two differ; the message says in what. Where the programs differ and the versions
            do too, it is unknown whether loss and optimizer differ, and the message names the versions.
    """
    theirs = notes.get("run")
    start = f"`checkpoint` must be of this run; {path}"
    if not isinstance(theirs, dict):
        raise ValueError(
            f"{start} was not written by `fit`, or by a version of it that did not record the loss and the "
            "optimizer. Remove the file, or give another name."
        )
    differ = [name for name, part in mark["parts"].items() if theirs["parts"].get(name) != part]
    if differ:
        raise ValueError(f"{start} is of a run that differs in {' and '.join(differ)}.")
    if theirs["program"] == mark["program"]:
        return
    then, now = theirs["versions"], mark["versions"]
    changed = [f"{name} {then.get(name)} (now {now[name]})" for name in now if then.get(name) != now[name]]
    if changed:
        raise ValueError(
            f"{start} was written under {' and '.join(changed)}, so that its loss and its optimizer cannot "
            "be compared with these. Resume it under those versions, or begin again with another file."
        )
    raise ValueError(f"{start} is of a run that differs in the loss, the optimizer or the flow's structure.")


def digest(value: PyTree, seen: dict[int, str] | None = None) -> str:
    """Return a digest of arrays and plain values, or of a traced program with its constants.

    It is the same in every process: variables are numbered in the order in which they appear, and what
    cannot be looked into (a function, an object with an address) counts by its name.

    Args:
        value: Arrays and plain values in lists, tuples and dictionaries, or a program of ``jax.make_jaxpr``.
        seen: The digests of the inner programs met so far, which may occur many times.
    """
    seen = {} if seen is None else seen
    below = lambda part: digest(part, seen)
    if isinstance(value, Jaxpr) and id(value) in seen:
        return seen[id(value)]
    parts: list[str]
    if isinstance(value, ClosedJaxpr):
        parts = [below(value.jaxpr), *map(below, value.consts)]
    elif isinstance(value, Jaxpr):
        number: dict[Var, int] = {}
        name = lambda v: (
            below(v.val) if isinstance(v, Literal) else f"{number.setdefault(v, len(number))}:{v.aval}"
        )
        parts = [*map(name, [*value.constvars, *value.invars])]
        for eqn in value.eqns:
            parts += [
                eqn.primitive.name,
                *map(name, eqn.invars),
                "->",
                *map(name, eqn.outvars),
                below(eqn.params),
            ]
        parts += ["return", *map(name, value.outvars)]
    elif isinstance(value, dict):
        # Where arrays lie changes no result to speak of, and a run may be resumed on other devices.
        where = ("mesh", "sharding")
        parts = sorted(f"{k}={below(v)}" for k, v in value.items() if not any(w in str(k) for w in where))
    elif isinstance(value, (list, tuple)):
        parts = [*map(below, value)]
    elif isinstance(value, (set, frozenset)):
        parts = sorted(map(below, value))
    elif isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        parts = [str(value.dtype), below(jr.key_data(value))]
    elif hasattr(value, "__array__") and not isinstance(value, type):
        array = np.asarray(value)
        parts = [f"{array.dtype}{array.shape}", hashlib.sha256(array.tobytes()).hexdigest()]
    elif callable(value):
        parts = [getattr(value, "__qualname__", type(value).__qualname__)]
    else:
        parts = [re.sub(r"0x[0-9a-fA-F]+", "", repr(value))]
    text = "\n".join([type(value).__name__, *parts])
    result = hashlib.sha256(text.encode()).hexdigest()
    if isinstance(value, Jaxpr):
        seen[id(value)] = result
    return result
