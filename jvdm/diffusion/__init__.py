"""The mathematics: schedules, paths, bounds, likelihoods and samplers, without networks or configs.

A module per idea, whose derivation opens it. The registries and all components are here.
"""

from jvdm.diffusion.dequantization import (
    DEQUANTIZATIONS,
    Continuous,
    TruncatedNormal,
    UniformDequantization,
    UniformReleased,
    Variational,
)
from jvdm.diffusion.divergence import TRACES, ExactTrace, Hutchinson
from jvdm.diffusion.gaussian import GaussianProcess
from jvdm.diffusion.k_hot_surrogate import KHotSurrogate
from jvdm.diffusion.latents import LATENTS, Gaussian, Gumbel, KSubset, NoLatent
from jvdm.diffusion.parameterizations import (
    PARAMETERIZATIONS,
    DataPrediction,
    Drift,
    Noise,
    Velocity,
    VelocityFromNoise,
)
from jvdm.diffusion.paths import PATHS, Straight, SubVariancePreserving, VariancePreserving
from jvdm.diffusion.per_pixel_schedules import PixelMonotone, Polynomial
from jvdm.diffusion.process import PROCESSES
from jvdm.diffusion.samplers import DDIM, SAMPLERS, Ancestral, ODESampler, ReverseSDE
from jvdm.diffusion.schedules import (
    SCHEDULES,
    FixedLinear,
    LearnedScalar,
    LinearBeta,
    MonotoneNetwork,
    MonotoneNetworkReleased,
)
from jvdm.diffusion.solvers import SOLVERS, Adaptive, Fixed
from jvdm.diffusion.times import (
    TIME_DENSITIES,
    TIME_SAMPLERS,
    Debiased,
    DebiasedReleased,
    Importance,
    Stratified,
    Uniform,
    UniformDensity,
)
from jvdm.diffusion.transforms import DATA_MAPS, Identity, Logit, Scaling

__all__ = [
    "DATA_MAPS",
    "DDIM",
    "DEQUANTIZATIONS",
    "LATENTS",
    "PARAMETERIZATIONS",
    "PATHS",
    "PROCESSES",
    "SAMPLERS",
    "SCHEDULES",
    "SOLVERS",
    "TIME_DENSITIES",
    "TIME_SAMPLERS",
    "TRACES",
    "Adaptive",
    "Ancestral",
    "Continuous",
    "DataPrediction",
    "Debiased",
    "DebiasedReleased",
    "Drift",
    "ExactTrace",
    "Fixed",
    "FixedLinear",
    "Gaussian",
    "GaussianProcess",
    "Gumbel",
    "Hutchinson",
    "Identity",
    "Importance",
    "KHotSurrogate",
    "KSubset",
    "LearnedScalar",
    "LinearBeta",
    "Logit",
    "MonotoneNetwork",
    "MonotoneNetworkReleased",
    "NoLatent",
    "Noise",
    "ODESampler",
    "PixelMonotone",
    "Polynomial",
    "ReverseSDE",
    "Scaling",
    "Straight",
    "Stratified",
    "SubVariancePreserving",
    "TruncatedNormal",
    "Uniform",
    "UniformDensity",
    "UniformDequantization",
    "UniformReleased",
    "VariancePreserving",
    "Variational",
    "Velocity",
    "VelocityFromNoise",
]
