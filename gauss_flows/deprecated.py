"""Names of version 0.1 that have moved; they keep working, with a warning, for one release."""

import importlib
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

# The modules that are gone, with the new home of each public name in them.
_MODULES = {
    "base": {
        **dict.fromkeys(("Bijection", "Scan", "standard_normal"), "bijection"),
        "Transformed": "transformed",
    },
    "numerics": {
        **dict.fromkeys(
            ("NormalTails", "mills_ratio", "ndtri_exp", "normal_quantile", "normal_tails"), "normal"
        ),
        **dict.fromkeys(("implicit_root", "solve_monotone"), "rootfinding"),
    },
    "gaussianization": {
        **dict.fromkeys(("RBIGResult", "rbig"), "rbig"),
        "fit_mixture": "mixtures",
        "gaussianization_flow": "marginal",
        "principal_axes": "moments",
        "warm_start": "initialize",
    },
}
# Public names that have left a module, and where they are now.
_NAMES = {
    "bijectors": {
        "Family": "parametrize.Parametrized",
        **dict.fromkeys(("DeepSigmoid", "MixtureGaussianCDF"), "mixtures"),
        "RQSpline": "spline",
    },
    "residual": {
        **dict.fromkeys(("estimate_log_prob", "with_log_det"), "log_det"),
    },
}


def old_module(name: str) -> types.ModuleType:
    """Return a module of version 0.1 that is gone, which finds its names in their new places.

    Raises:
        AttributeError: If there was no such module.
    """
    if name not in _MODULES:
        raise AttributeError(f"module 'gauss_flows' has no attribute {name!r}")
    module: Any = types.ModuleType(f"gauss_flows.{name}")
    module.__getattr__ = _finder(name, _MODULES[name])
    return module


def moved(module: str) -> Callable[[str], object]:
    """Return the ``__getattr__`` of a module of this package that some public names have left."""
    name = module.rpartition(".")[2]
    return _finder(name, _NAMES[name])


def _finder(module: str, homes: dict[str, str]) -> Callable[[str], object]:
    def find(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module 'gauss_flows.{module}' has no attribute {name!r}")
        home, _, new = homes[name].partition(".")
        found = getattr(importlib.import_module(f"gauss_flows.{home}"), new or name)
        public = hasattr(sys.modules["gauss_flows"], new or name)
        place = f"gauss_flows.{'' if public else home + '.'}{new or name}"
        warnings.warn(f"gauss_flows.{module}.{name} is now {place}.", DeprecationWarning, stacklevel=2)
        return found

    return find
