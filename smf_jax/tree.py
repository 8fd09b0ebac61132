"""Names of the leaves of a tree, such as `blocks/0/norm/scale`."""

from typing import Any

import jax
from jaxtyping import PyTree


def leaf_name(path: tuple) -> str:
    """Returns the name of a leaf, given its JAX key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a tree by name."""
    return {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
