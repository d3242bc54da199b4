"""Trees of arrays by name, such as "params/network/conv_in/kernel"."""

from collections.abc import Mapping
from typing import Any

import jax


def name_of(path: Any) -> str:
    """The name of a leaf from its path, as JAX gives it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves(tree: Any) -> dict[str, Any]:
    """Whatever has a shape, by name."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda a: hasattr(a, "shape"))
    return {name_of(path): leaf for path, leaf in found}


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from leaves by name."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
