"""How long a gradient is, and how long it may be."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from smf_jax.kernels.sharded import sum_of_squares
from smf_jax.optim.methods import is_of_table
from smf_jax.sharding import ONE_DEVICE, Placement


def norm(grads: PyTree, placement: Placement = ONE_DEVICE) -> Float[Array, ""]:
    """Returns the Euclidean norm of all numbers of a gradient together.

    Of tables, whose squares would be an array as large, it sums some rows at a time.
    """

    def squares(path, leaf):
        if is_of_table(path):
            return sum_of_squares(placement, leaf)
        return jnp.square(leaf).sum()

    return jnp.sqrt(sum(jax.tree.leaves(jax.tree.map_with_path(squares, grads))))


def clip(grads: PyTree, norm: Float[Array, ""], longest: float | None) -> PyTree:
    """Returns a gradient of a norm scaled to the longest, if it is longer.

    Source: Pascanu et al. 2013, arXiv:1211.5063.
    """
    if longest is None:
        return grads
    scale = jnp.where(norm > longest, longest / norm, 1)
    return jax.tree.map(lambda leaf: scale * leaf, grads)
