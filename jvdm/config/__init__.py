"""The fields that every config has, and how flags and arguments change them.

`sections` declares them with their ranges; options of a component are declared by the component.
"""

from jvdm.config.changes import check_model, check_resume, differences, model_fields
from jvdm.config.plain import leaves, read_json, to_json
from jvdm.config.schema import COMPONENTS, about, check_complete, default

__all__ = [
    "COMPONENTS",
    "about",
    "check_complete",
    "check_model",
    "check_resume",
    "default",
    "differences",
    "leaves",
    "model_fields",
    "read_json",
    "to_json",
]
