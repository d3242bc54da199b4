"""Estimators of the likelihood over sets of examples, samples, and the records of both.

A pass visits every example once, can be resumed, and does not depend on batch size or devices.
"""

from jvdm.evaluation.elbo import RandomSliceELBO, ScoreFlowBound
from jvdm.evaluation.estimator import ESTIMATORS, Estimator
from jvdm.evaluation.ode import ODE
from jvdm.evaluation.vlb import VLB

__all__ = [
    "ESTIMATORS",
    "ODE",
    "VLB",
    "Estimator",
    "RandomSliceELBO",
    "ScoreFlowBound",
]
