"""Leaves of any pytree by name, such as "params/network/conv_in/kernel".

Nested dicts are `flax.traverse_util`'s matter: `flatten_dict(tree, sep="/")` and `unflatten_dict`.
"""

from typing import Any

import jax


def name_of(path: Any) -> str:
    """The name of a leaf from its path, as JAX gives it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves(tree: Any) -> dict[str, Any]:
    """Whatever has a shape, by name."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda a: hasattr(a, "shape"))
    return {name_of(path): leaf for path, leaf in found}
