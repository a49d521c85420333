"""Normalizing flows in JAX: one bijector, one conditioner and one mask at a time.

Every layer is a flowjax bijection, so it works in flowjax's ``Chain``, ``Scan``, ``Invert`` and
``Transformed``. The book's chapters open the package one module at a time.
"""

from gauss_flows import (
    base,
    bijectors,
    checks,
    conditioners,
    coupling,
    information,
    masks,
    numerics,
    residual,
    targets,
)
from gauss_flows.actnorm import ActNorm1D, data_init
from gauss_flows.autoregressive import MaskedAutoregressive
from gauss_flows.base import Bijection, Scan, Transformed
from gauss_flows.bijectors import Affine, DeepSigmoid, MixtureGaussianCDF, RQSpline
from gauss_flows.checks import CheckError, Report, check, check_bijection
from gauss_flows.coupling import (
    AdditiveCoupling,
    AffineCoupling,
    Coupling,
    DeepSigmoidCoupling,
    MixtureGaussianCDFCoupling,
    RQSplineCoupling,
)
from gauss_flows.flows import coupling_flow, iaf, maf, residual_flow
from gauss_flows.gaussianization import (
    RBIGResult,
    gaussianization_flow,
    rbig,
    warm_start,
)
from gauss_flows.information import entropy, negentropy, total_correlation
from gauss_flows.io import load, save
from gauss_flows.linear import HouseholderRotation, LULinear
from gauss_flows.marginal import MarginalGaussianization
from gauss_flows.masks import reachability
from gauss_flows.residual import LipschitzMLP, Residual, estimate_log_prob, with_log_det
from gauss_flows.targets import kl_divergence
from gauss_flows.train import FitResult, NonFiniteLoss, distill, fit, fit_many

__version__ = "0.1.0"

__all__ = [
    "ActNorm1D",
    "AdditiveCoupling",
    "Affine",
    "AffineCoupling",
    "Bijection",
    "CheckError",
    "Coupling",
    "DeepSigmoid",
    "DeepSigmoidCoupling",
    "FitResult",
    "HouseholderRotation",
    "LULinear",
    "LipschitzMLP",
    "MarginalGaussianization",
    "MaskedAutoregressive",
    "MixtureGaussianCDF",
    "MixtureGaussianCDFCoupling",
    "NonFiniteLoss",
    "RBIGResult",
    "RQSpline",
    "RQSplineCoupling",
    "Report",
    "Residual",
    "Scan",
    "Transformed",
    "base",
    "bijectors",
    "check",
    "check_bijection",
    "checks",
    "conditioners",
    "coupling",
    "coupling_flow",
    "data_init",
    "distill",
    "entropy",
    "estimate_log_prob",
    "fit",
    "fit_many",
    "gaussianization_flow",
    "iaf",
    "information",
    "kl_divergence",
    "load",
    "maf",
    "masks",
    "negentropy",
    "numerics",
    "rbig",
    "reachability",
    "residual",
    "residual_flow",
    "save",
    "targets",
    "total_correlation",
    "warm_start",
    "with_log_det",
]
