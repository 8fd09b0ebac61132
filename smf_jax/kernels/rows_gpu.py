"""What `rows.py` does, as Triton kernels for GPU (measured on an H100).

Each program owns a part of one sum or gradient and writes it once, so there are no
atomics and the bits are the same in every run. Rows are read where they lie, whatever
their width: no array is padded or copied.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from smf_jax.kernels.gpu import at_most, call, load
from smf_jax.kernels.table_gpu import table_gradient

__all__ = ["table_gradient", "weight_gradient", "weighted_rows"]

# Reads x columns of a tile: what took least on an H100 of the tiles that were tried.
SUMMED = (8, 256)
MULTIPLIED = (32, 256)


def weighted_rows(
    values: Float[Array, "num_slots value_dim"],
    slots: Int[Array, "*batch reads"],
    weights: Float[Array, "*batch reads"],
    *,
    interpret: bool = False,
) -> Float[Array, "*batch value_dim"]:
    """Returns what `rows.weighted_rows` does; `sharded.py` gives it its gradients.

    A row whose weight is 0 is not read, so that a device which holds few of the slots
    reads few rows; numbers in it that are not finite do not show.

    Args:
      values: The table.
      slots: Ids below num_slots.
      weights: Of each read.
      interpret: Run it step by step on a CPU, for tests.
    """
    *batch, reads = slots.shape
    slots, weights = (leaf.reshape(-1, reads) for leaf in (slots, weights))
    tokens, width = len(slots), values.shape[1]
    at_once, columns = map(at_most, (reads, width), SUMMED)

    def sum_rows(values, slots, weights, out):
        token = pl.program_id(0)
        column = pl.program_id(1) * columns + jnp.arange(columns)

        def add(step, sums):
            read = step * at_once + jnp.arange(at_once)
            slot = load(slots, (token, read), read < reads)
            weight = load(weights, (token, read), read < reads)
            there = (weight != 0)[:, None] & (column < width)[None]
            rows = load(values, (slot[:, None], column[None]), there)
            return sums + weight[:, None] * rows

        start = jnp.zeros((at_once, columns), jnp.float32)
        sums = jax.lax.fori_loop(0, pl.cdiv(reads, at_once), add, start).sum(0)
        place = out.at[token, column]
        plgpu.store(place, sums.astype(out.dtype), mask=column < width)

    out = call(
        sum_rows,
        (tokens, pl.cdiv(width, columns)),
        jax.ShapeDtypeStruct((tokens, width), values.dtype),
        interpret,
    )(values, slots, weights)
    return out.reshape(*batch, width)


def weight_gradient(
    values: Float[Array, "num_slots value_dim"],
    slots: Int[Array, "*batch reads"],
    cotangent: Float[Array, "*batch value_dim"],
    *,
    interpret: bool = False,
) -> Float[Array, "*batch reads"]:
    """Returns what `rows.weight_gradient` does."""
    *batch, reads = slots.shape
    slots = slots.reshape(-1, reads)
    tokens, width = len(slots), values.shape[1]
    cotangent = cotangent.reshape(tokens, width)
    at_once, columns = map(at_most, (reads, width), MULTIPLIED)

    def multiply(values, slots, cotangent, out):
        token = pl.program_id(0)
        read = pl.program_id(1) * at_once + jnp.arange(at_once)
        slot = load(slots, (token, read), read < reads)

        def add(step, sums):
            column = step * columns + jnp.arange(columns)
            there = (read < reads)[:, None] & (column < width)[None]
            rows = load(values, (slot[:, None], column[None]), there)
            return sums + rows * load(cotangent, (token, column), column < width)[None]

        start = jnp.zeros((at_once, columns), jnp.float32)
        sums = jax.lax.fori_loop(0, pl.cdiv(width, columns), add, start).sum(1)
        plgpu.store(out.at[token, read], sums, mask=read < reads)

    out = call(
        multiply,
        (tokens, pl.cdiv(reads, at_once)),
        jax.ShapeDtypeStruct((tokens, reads), jnp.float32),
        interpret,
    )(values, slots, cotangent)
    return out.reshape(*batch, reads)
