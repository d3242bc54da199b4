"""jvdm: diffusion models judged by their likelihood, in JAX and Flax.

    trained = jvdm.load("runs/digits")         # a workdir, or one checkpoint
    scores = trained.bits_per_dim(images)      # of every image, and the record of the mean
    samples = trained.sample(64)

`import jvdm` imports nothing: jax and the rest are imported when a name below is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jvdm.api import LoadedModel, Scores, load
    from jvdm.core.errors import UserError
    from jvdm.data.example_set import ExampleSet, load_examples
    from jvdm.evaluation.sampling import Samples

__version__ = "0.1.0"
__all__ = [
    "ExampleSet",
    "LoadedModel",
    "Samples",
    "Scores",
    "UserError",
    "__version__",
    "load",
    "load_examples",
]

_MODULES = {
    "LoadedModel": "jvdm.api",
    "Samples": "jvdm.evaluation.sampling",
    "Scores": "jvdm.api",
    "ExampleSet": "jvdm.data.example_set",
    "UserError": "jvdm.core.errors",
    "load": "jvdm.api",
    "load_examples": "jvdm.data.example_set",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'jvdm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
