"""Array work on a mesh: each device on its own part, then one collective.

Left alone, the compiler would gather whole batches. Arrays of [..., batch, seq, ...]
are split by the axes of `BATCH`.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from smf_jax.sharding import BATCH, MeshLayout


def token_spec(array: Array, last: str | None = None) -> PartitionSpec:
    """Returns how [..., batch, seq, width] is split."""
    return PartitionSpec(*(None,) * (array.ndim - 3), BATCH, None, last)


def embed(
    layout: MeshLayout,
    table: Float[Array, "vocab dim"],
    tokens: Int[Array, "batch seq"],
) -> Float[Array, "batch seq dim"]:
    """Returns the row of each token, and NaN for one outside the vocabulary.

    Rows are cast to the type of activations. The gradient of the table is summed in its
    own type: in bfloat16 a token that occurs 4,096 times would count 256 times.
    """
    rows_axis, columns_axis = spec = layout.spec("embedding", table.shape)

    def local(table, tokens):
        first = 0
        table = layout.gather(table, columns_axis, 1)
        if layout.mesh is not None and rows_axis:
            first = jax.lax.axis_index(rows_axis) * len(table)
        index = tokens - first
        # A negative index would count from the end.
        index = jnp.where(index < 0, len(table), index)
        rows = table.at[index].get(mode="fill", fill_value=0)
        rows = rows.astype(layout.compute.activations)
        return layout.psum(rows, rows_axis)

    batch = PartitionSpec(BATCH)
    rows = layout.shard_map(local, (spec, batch), batch, check=True)
    is_known = (tokens >= 0) & (tokens < len(table))
    return jnp.where(is_known[..., None], rows(table, tokens), jnp.nan)


def take_positions(
    layout: MeshLayout,
    array: Shaped[Array, "batch seq ..."],
    positions: Int[Array, "batch some"],
) -> Shaped[Array, "batch some ..."]:
    """Returns the entries of each row at its own positions, which must exist."""

    def local(array, positions):
        index = positions.reshape(*positions.shape, *(1,) * (array.ndim - 2))
        return jnp.take_along_axis(array, index, 1, mode="promise_in_bounds")

    batch = PartitionSpec(BATCH)
    take = layout.shard_map(local, (batch, batch), batch, check=True)
    return take(array, positions)


def local_rows(
    layout: MeshLayout, num_rows: int, slots: Int[Array, "..."]
) -> tuple[Int[Array, "..."], Bool[Array, "..."]]:
    """Returns slots as rows of this device's `num_rows` rows, and which it holds."""
    if not layout.row_axes:
        return slots, jnp.array(True)
    index = slots - jax.lax.axis_index(layout.row_axes) * num_rows
    return index, (index >= 0) & (index < num_rows)
