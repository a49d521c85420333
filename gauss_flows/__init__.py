"""Normalizing flows in JAX: one bijector, one conditioner and one mask at a time.

Every layer is a flowjax bijection, so it works in flowjax's ``Chain``, ``Scan``, ``Invert`` and
``Transformed``. The book's chapters open the package one module at a time.
"""

from gauss_flows import base, bijectors, checks, conditioners, coupling, masks, numerics

# What every layer is
from gauss_flows.base import Bijection

# The coupling pattern
from gauss_flows.bijectors import Affine, MixtureGaussianCDF

# The printed proof
from gauss_flows.checks import CheckError, Report, check, check_bijection
from gauss_flows.coupling import AffineCoupling, Coupling, MixtureGaussianCDFCoupling

__version__ = "0.1.0"

__all__ = [
    "Affine",
    "AffineCoupling",
    "Bijection",
    "CheckError",
    "Coupling",
    "MixtureGaussianCDF",
    "MixtureGaussianCDFCoupling",
    "Report",
    "base",
    "bijectors",
    "check",
    "check_bijection",
    "checks",
    "conditioners",
    "coupling",
    "masks",
    "numerics",
]
