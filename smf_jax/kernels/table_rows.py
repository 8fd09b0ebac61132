"""Rows of a memory's table that sparse finetuning chose, the same few on all devices.

Each device has them all, or columns of them, whichever holds them: they are few, and
an optimizer's clipping measures them together.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from smf_jax.kernels import row_sums
from smf_jax.kernels.sharded import gather, local_rows, of_tokens, scatter
from smf_jax.sharding import BATCH, MeshLayout

_ROWS = PartitionSpec(None, "model")  # [top_t, value_dim] of chosen slots


def selected_rows_gradient(
    layout: MeshLayout,
    cotangent: Float[Array, "*parts batch seq value_dim"],
    slots: Int[Array, "*parts batch seq reads"],
    weights: Float[Array, "*parts batch seq reads"],
    chosen: Int[Array, " top_t"],
    num_slots: int,
) -> Float[Array, "top_t value_dim"]:
    """Returns what `row_sums.selected_rows_gradient` does: sums of each device's tokens."""

    def local(cotangent, slots, weights, chosen):
        gradient = row_sums.selected_rows_gradient(
            cotangent, slots, weights, chosen, num_slots
        )
        return gradient if layout.mesh is None else jax.lax.psum(gradient, BATCH)

    specs = (
        *(of_tokens(cotangent, "model"), of_tokens(slots), of_tokens(slots)),
        PartitionSpec(),
    )
    return layout.shard_map(local, specs, _ROWS)(cotangent, slots, weights, chosen)


def take_rows(
    layout: MeshLayout,
    table: Shaped[Array, "num_slots ..."],
    slots: Int[Array, " top_t"],
) -> Shaped[Array, "top_t ..."]:
    """Returns rows of a table, and zeros for ids of num_slots or more."""

    def local(table, slots):
        place, is_here = local_rows(layout, len(table), slots)
        place = jnp.where(is_here, place, len(table))
        taken = table.at[place].get(mode="fill", fill_value=0)
        if "model" in layout.row_axes:
            taken = scatter(taken, "model", 1)
        others = tuple(axis for axis in layout.row_axes if axis in BATCH)
        return jax.lax.psum(taken, others) if others else taken

    specs = (layout.table_spec, PartitionSpec())
    return layout.shard_map(local, specs, _ROWS)(table, slots)


def put_rows(
    layout: MeshLayout,
    table: Shaped[Array, "num_slots ..."],
    slots: Int[Array, " top_t"],
    new: Shaped[Array, "top_t ..."],
) -> Shaped[Array, "num_slots ..."]:
    """Returns a table with rows replaced; ids, all different, past its end are none."""

    def local(table, slots, new):
        if "model" in layout.row_axes:
            new = gather(new, "model", 1)
        place, is_here = local_rows(layout, len(table), slots)
        # Different from one another, as is promised.
        none = len(table) + jnp.arange(len(slots), dtype=slots.dtype)
        place = jnp.where(is_here, place, none)
        return table.at[place].set(
            new.astype(table.dtype), mode="drop", unique_indices=True
        )

    specs = (layout.table_spec, PartitionSpec(), _ROWS)
    return layout.shard_map(local, specs, layout.table_spec)(table, slots, new)
