"""The fields that every config has, and how flags and arguments change them.

Options of a component belong to the component; `default` collects them.
"""

from jvdm.config.schema import (
    COMPONENTS,
    FREE_ON_RESUME,
    MODEL_SECTIONS,
    RANGES,
    check_complete,
    check_model,
    check_resume,
    default,
    differences,
    leaves,
    makes_the_model,
    model_fields,
    read_json,
    to_json,
)

__all__ = [
    "COMPONENTS",
    "FREE_ON_RESUME",
    "MODEL_SECTIONS",
    "RANGES",
    "check_complete",
    "check_model",
    "check_resume",
    "default",
    "differences",
    "leaves",
    "makes_the_model",
    "model_fields",
    "read_json",
    "to_json",
]
