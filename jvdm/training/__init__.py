"""Training: the optimizer, the objectives and their gradients, the one train step and the one loop.

A run is resumed bitwise from its newest checkpoint.
"""

from jvdm.training.gradients import OBJECTIVES, Bound, DenoisingScoreMatching, Variance

__all__ = [
    "OBJECTIVES",
    "Bound",
    "DenoisingScoreMatching",
    "Variance",
]
