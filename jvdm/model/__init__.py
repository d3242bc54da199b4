"""One model from the parts that a config selects, and what training and evaluation compute of it.

`build` composes and checks; `objectives` has the terms of the bound and of score matching.
"""

from jvdm.model.model import Model, build

__all__ = [
    "Model",
    "build",
]
