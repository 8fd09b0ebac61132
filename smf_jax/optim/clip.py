"""How long a gradient is, and how long it may be."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PyTree

from smf_jax.optim.methods import is_of_table
from smf_jax.sharding import ONE_DEVICE, Placement

SQUARES_AT_ONCE = 2048  # rows: of 1,024 floats they are 8 MiB


def norm(grads: PyTree, placement: Placement = ONE_DEVICE) -> Float[Array, ""]:
    """Returns the Euclidean norm of all numbers of a gradient together.

    Of tables, whose squares would be an array as large, it sums some rows at a time.
    """

    def squares(path, leaf):
        if is_of_table(path):
            return _sum_of_squares(placement, leaf)
        return jnp.square(leaf).sum()

    return jnp.sqrt(sum(jax.tree.leaves(jax.tree.map_with_path(squares, grads))))


def _sum_of_squares(
    placement: Placement, table: Float[Array, "rows value_dim"]
) -> Float[Array, ""]:
    """Returns the sum of the squares of the numbers of a table, or of rows split alike.

    No array of them is made, for which a CPU takes some rows at a time. It sums each
    column by itself: to sum all in one takes it three times as long.
    """

    def in_blocks(table):
        size = min(SQUARES_AT_ONCE, len(table))

        def add(number, total):
            rows = jax.lax.dynamic_slice_in_dim(table, number * size, size)
            return total + jnp.square(rows).sum(0)

        blocks = len(table) // size
        total = jax.lax.fori_loop(0, blocks, add, jnp.zeros(table.shape[1]))
        return (total + jnp.square(table[blocks * size :]).sum(0)).sum()

    def local(table):
        on_cpu = placement.platform == "cpu"
        total = in_blocks(table) if on_cpu else jnp.square(table).sum()
        if placement.mesh is None:
            return total
        columns = ("model",) if placement.layout == "columns" else ()
        return jax.lax.psum(total, (*placement.row_axes, *columns))

    return placement.on_shards(local, (placement.table,), PartitionSpec())(table)


def clip(grads: PyTree, norm: Float[Array, ""], longest: float | None) -> PyTree:
    """Returns a gradient of a norm scaled to the longest, if it is longer.

    Source: Pascanu et al. 2013, arXiv:1211.5063.
    """
    if longest is None:
        return grads
    scale = jnp.where(norm > longest, longest / norm, 1)
    return jax.tree.map(lambda leaf: scale * leaf, grads)
