"""The global norm of a gradient, and clipping by it."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PyTree

from smf_jax.optim.methods import is_table
from smf_jax.sharding import ONE_DEVICE, MeshLayout

ROWS_PER_CHUNK = 2048  # of 1,024 floats: 8 MiB


def global_norm(grads: PyTree, layout: MeshLayout = ONE_DEVICE) -> Float[Array, ""]:
    """Returns the Euclidean norm over all leaves of a gradient."""
    squares = [
        _table_squares(layout, leaf) if is_table(path) else jnp.square(leaf).sum()
        for path, leaf in jax.tree.leaves_with_path(grads)
    ]
    return jnp.sqrt(sum(squares))


def _table_squares(layout, table):
    def local(table):
        on_cpu = layout.platform == "cpu"
        total = _sum_in_chunks(table) if on_cpu else jnp.square(table).sum()
        columns = ("model",) if layout.table_split == "columns" else ()
        return layout.psum(total, (*layout.row_axes, *columns))

    return layout.shard_map(local, (layout.table_spec,), PartitionSpec())(table)


def _sum_in_chunks(table):
    """Sums squares without an array of them as large as the table."""
    size = min(ROWS_PER_CHUNK, len(table))

    # By column: a CPU takes three times as long for one sum.
    def add(number, total):
        rows = jax.lax.dynamic_slice_in_dim(table, number * size, size)
        return total + jnp.square(rows).sum(0)

    chunks = len(table) // size
    total = jax.lax.fori_loop(0, chunks, add, jnp.zeros(table.shape[1]))
    return (total + jnp.square(table[chunks * size :]).sum(0)).sum()


def clip(grads: PyTree, norm: Float[Array, ""], max_norm: float | None) -> PyTree:
    """Returns a gradient of global norm `norm`, scaled down to `max_norm` if above it.

    Source: Pascanu et al. 2013, arXiv:1211.5063.
    """
    if max_norm is None:
        return grads
    scale = jnp.where(norm > max_norm, max_norm / norm, 1)
    return jax.tree.map(lambda leaf: scale * leaf, grads)
