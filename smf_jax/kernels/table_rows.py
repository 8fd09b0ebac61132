"""Rows that sparse finetuning selects: their gradient, reading and writing them.

Selected rows are few, and every device holds all of them, or their columns where tables
are split by columns: an optimizer's clipping measures them together.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from smf_jax.kernels.chunks import tokens_in_chunks
from smf_jax.kernels.sharded import local_rows, token_spec
from smf_jax.sharding import BATCH, MeshLayout

TOKENS_PER_CHUNK = 1024  # of a matrix product
_ROWS = PartitionSpec(None, "model")  # [top_t, value_dim] of selected slots


def selected_rows_gradient(
    layout: MeshLayout,
    cotangent: Float[Array, "*batch value_dim"],
    slots: Int[Array, "*batch reads"],
    weights: Float[Array, "*batch reads"],
    selected: Int[Array, " top_t"],
    num_slots: int,
) -> Float[Array, "top_t value_dim"]:
    """Returns the rows `selected` of the gradient of `row_sums.weighted_rows`.

    No array of the table's shape is made: the weights of selected rows in each token
    form a small matrix, and the gradient is its product with `cotangent`, the gradient
    of the sums. Slots `selected` must all be different; ids of num_slots or more are
    padding and get 0.
    """
    top_t = len(selected)

    def local(cotangent, slots, weights, selected):
        columns = jnp.full(num_slots, top_t, jnp.int32)
        numbers = jnp.arange(top_t, dtype=jnp.int32)
        columns = columns.at[selected].set(numbers, mode="drop")

        def add_chunk(gradient, chunk):
            slots, weights, cotangent = chunk
            tokens = jnp.arange(len(slots))[:, None]
            column = columns.at[slots].get(mode="promise_in_bounds")
            mix = jnp.zeros((len(slots), top_t), jnp.float32)
            mix = mix.at[tokens, column].add(weights.astype(jnp.float32), mode="drop")
            exact = jax.lax.Precision.HIGHEST
            rows = jnp.matmul(mix.T, cotangent.astype(jnp.float32), precision=exact)
            return gradient + rows, None

        chunks = tokens_in_chunks(TOKENS_PER_CHUNK, slots, weights, cotangent)
        zeros = jnp.zeros((top_t, cotangent.shape[-1]), jnp.float32)
        return layout.psum(jax.lax.scan(add_chunk, zeros, chunks)[0], BATCH)

    tokens = token_spec(slots)
    specs = (token_spec(cotangent, "model"), tokens, tokens, PartitionSpec())
    run = layout.shard_map(local, specs, _ROWS)
    return run(cotangent, slots, weights, selected)


def take_rows(
    layout: MeshLayout,
    table: Shaped[Array, "num_slots ..."],
    slots: Int[Array, " top_t"],
) -> Shaped[Array, "top_t ..."]:
    """Returns rows of a table, and zeros for ids of num_slots or more."""

    def local(table, slots):
        index, is_here = local_rows(layout, len(table), slots)
        index = jnp.where(is_here, index, len(table))
        rows = table.at[index].get(mode="fill", fill_value=0)
        rows = layout.scatter(rows, layout.model_row_axes, 1)
        return layout.psum(rows, layout.batch_row_axes)

    specs = (layout.table_spec, PartitionSpec())
    return layout.shard_map(local, specs, _ROWS)(table, slots)


def put_rows(
    layout: MeshLayout,
    table: Shaped[Array, "num_slots ..."],
    slots: Int[Array, " top_t"],
    rows: Shaped[Array, "top_t ..."],
) -> Shaped[Array, "num_slots ..."]:
    """Returns a table with rows replaced.

    Slots must all be different; ids of num_slots or more are padding.
    """

    def local(table, slots, rows):
        rows = layout.gather(rows, layout.model_row_axes, 1)
        index, is_here = local_rows(layout, len(table), slots)
        # Padding, too, must be unique.
        padding = len(table) + jnp.arange(len(slots), dtype=slots.dtype)
        index = jnp.where(is_here, index, padding)
        return table.at[index].set(
            rows.astype(table.dtype), mode="drop", unique_indices=True
        )

    specs = (layout.table_spec, PartitionSpec(), _ROWS)
    return layout.shard_map(local, specs, layout.table_spec)(table, slots, rows)
