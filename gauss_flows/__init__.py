"""Normalizing flows in JAX: one bijector, one conditioner and one mask at a time.

Every layer is a flowjax bijection, so it works in flowjax's ``Chain``, ``Scan``, ``Invert`` and
``Transformed``. The book's chapters explain the package one module at a time.
"""

from gauss_flows import (
    bijectors,
    checks,
    conditioners,
    coupling,
    information,
    log_det,
    masks,
    normal,
    residual,
    rootfinding,
    targets,
)
from gauss_flows.actnorm import ActNorm, ActNorm1D
from gauss_flows.autoregressive import MaskedAutoregressive
from gauss_flows.bijection import Bijection, Scan, standard_normal
from gauss_flows.bijectors import Affine
from gauss_flows.check_report import CheckError, Report, check, check_table
from gauss_flows.checks import check_bijection
from gauss_flows.circular import CircularSpline
from gauss_flows.codec import compress, decompress
from gauss_flows.continuous import FlowODE, density_error
from gauss_flows.coupling import (
    AdditiveCoupling,
    AffineCoupling,
    Coupling,
    DeepSigmoidCoupling,
    MixtureGaussianCDFCoupling,
    RQSplineCoupling,
)
from gauss_flows.density import fit_density
from gauss_flows.deprecated import old_module
from gauss_flows.dequantize import Dequantize, variational_noise
from gauss_flows.discrete import DiscreteAutoregressive, input_dropout
from gauss_flows.distill import distill
from gauss_flows.fit_options import FitOptions
from gauss_flows.fit_result import FitResult, NonFiniteLoss
from gauss_flows.flow_matching import flow_matching, reflow
from gauss_flows.flows import (
    continuous_flow,
    coupling_flow,
    iaf,
    maf,
    residual_flow,
)
from gauss_flows.guidance import drop_condition, guided
from gauss_flows.image import Split, Squeeze, image_flow
from gauss_flows.importance import ImportanceSample, importance_sample
from gauss_flows.information import (
    entropy,
    kl_divergence,
    mutual_information,
    negentropy,
    total_correlation,
)
from gauss_flows.initialize import data_init, warm_start
from gauss_flows.io import load, save
from gauss_flows.levels import BitsPerDim, bits_per_dim
from gauss_flows.linear import Conv1x1, HouseholderRotation, LULinear
from gauss_flows.lipschitz import LipschitzMLP
from gauss_flows.log_det import estimate_log_prob, with_log_det
from gauss_flows.marginal import MarginalGaussianization, gaussianization_flow
from gauss_flows.masks import reachability
from gauss_flows.mixtures import DeepSigmoid, MixtureGaussianCDF
from gauss_flows.parametrize import Parametrized
from gauss_flows.rbig import RBIGResult, rbig
from gauss_flows.residual import Residual
from gauss_flows.spline import RQSpline
from gauss_flows.supports import Supports
from gauss_flows.tables import Prepared, prepare
from gauss_flows.train import fit, fit_many
from gauss_flows.transformed import Transformed
from gauss_flows.transformer_flow import transformer_flow

__version__ = "0.1.0"

__all__ = [
    "ActNorm",
    "ActNorm1D",
    "AdditiveCoupling",
    "Affine",
    "AffineCoupling",
    "Bijection",
    "BitsPerDim",
    "CheckError",
    "CircularSpline",
    "Conv1x1",
    "Coupling",
    "DeepSigmoid",
    "DeepSigmoidCoupling",
    "Dequantize",
    "DiscreteAutoregressive",
    "FitOptions",
    "FitResult",
    "FlowODE",
    "HouseholderRotation",
    "ImportanceSample",
    "LULinear",
    "LipschitzMLP",
    "MarginalGaussianization",
    "MaskedAutoregressive",
    "MixtureGaussianCDF",
    "MixtureGaussianCDFCoupling",
    "NonFiniteLoss",
    "Parametrized",
    "Prepared",
    "RBIGResult",
    "RQSpline",
    "RQSplineCoupling",
    "Report",
    "Residual",
    "Scan",
    "Split",
    "Squeeze",
    "Supports",
    "Transformed",
    "bijectors",
    "bits_per_dim",
    "check",
    "check_bijection",
    "check_table",
    "checks",
    "compress",
    "conditioners",
    "continuous_flow",
    "coupling",
    "coupling_flow",
    "data_init",
    "decompress",
    "density_error",
    "distill",
    "drop_condition",
    "entropy",
    "estimate_log_prob",
    "fit",
    "fit_density",
    "fit_many",
    "flow_matching",
    "gaussianization_flow",
    "guided",
    "iaf",
    "image_flow",
    "importance_sample",
    "information",
    "input_dropout",
    "kl_divergence",
    "load",
    "log_det",
    "maf",
    "masks",
    "mutual_information",
    "negentropy",
    "normal",
    "prepare",
    "rbig",
    "reachability",
    "reflow",
    "residual",
    "residual_flow",
    "rootfinding",
    "save",
    "standard_normal",
    "targets",
    "total_correlation",
    "transformer_flow",
    "variational_noise",
    "warm_start",
    "with_log_det",
]


def __getattr__(name: str):
    return old_module(name)
