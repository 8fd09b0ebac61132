"""The gradient of a whole table as a Mosaic kernel for TPU (not measured on one).

Reads are sorted by slot. Each step of the kernel owns a block of rows, adds what was
read of them in that order, and writes them once: the same bits in every run.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.lax import div, rem  # of what is not negative; `//` and `%` look at signs
from jaxtyping import Array, Float, Int

from smf_jax.kernels.dma_tpu import (
    BYTES_PER_OUTPUT,
    LANES,
    SUBLANES,
    aligned,
    in_sublanes,
    keep_ahead,
)

ROWS_AHEAD = 16  # of cotangents
READS_PER_TILE = SUBLANES * LANES  # copied to SMEM at once


def table_gradient(
    cotangent: Float[Array, "*batch value_dim"],
    slots: Int[Array, "*batch reads"],
    weights: Float[Array, "*batch reads"],
    num_slots: int,
    *,
    interpret: Any = False,
) -> Float[Array, "num_slots value_dim"]:
    """Returns what `rows.table_gradient` does, summed in the order of the tokens.

    Beside it, this holds some numbers a read and the cotangents in float32.

    Args:
      cotangent: Gradient of the loss with respect to the summed rows.
      slots: What the forward pass read; num_slots or more stands for none.
      weights: With which weights.
      num_slots: Rows of the table.
      interpret: As `pallas_call` takes it: run it step by step on a CPU, for tests.
    """
    width = cotangent.shape[-1]
    cotangent = aligned(cotangent.reshape(-1, width).astype(jnp.float32))
    reads = _by_slot(slots, weights)
    of_row = 4 * cotangent.shape[1]  # bytes, the lanes that fill it up included
    height = in_sublanes(num_slots, BYTES_PER_OUTPUT // of_row)
    steps = pl.cdiv(num_slots, height)
    ends = jnp.minimum(jnp.arange(steps + 1) * height, num_slots)
    starts = jnp.searchsorted(reads[0], ends.astype(slots.dtype))
    hbm = pl.BlockSpec(memory_space=pltpu.HBM)
    return pl.pallas_call(
        _sum_rows,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(steps,),
            in_specs=[hbm] * 4,
            out_specs=pl.BlockSpec((height, width), lambda step, starts: (step, 0)),
            scratch_shapes=[
                [pltpu.SMEM((SUBLANES, LANES), leaf.dtype) for leaf in reads],
                pltpu.SMEM((1,), jnp.int32),
                pltpu.SemaphoreType.DMA((1,)),
                pltpu.VMEM((ROWS_AHEAD, cotangent.shape[1]), jnp.float32),
                pltpu.SemaphoreType.DMA((ROWS_AHEAD,)),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((num_slots, width), jnp.float32),
        cost_estimate=pl.CostEstimate(
            flops=2 * slots.size * width,
            bytes_accessed=4 * width * (slots.size + num_slots),
            transcendentals=0,
        ),
        interpret=interpret,
    )(starts.astype(jnp.int32), *map(_in_tiles, reads), cotangent)


def _by_slot(slots: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Returns the slot, the token and the weight of each read, sorted."""
    numbers = jnp.arange(slots.size, dtype=jnp.int32)
    reads = slots.reshape(-1), numbers, weights.reshape(-1).astype(jnp.float32)
    # With the numbers as keys no two are equal, which spares a stable sort.
    sorted_slots, numbers, weights = jax.lax.sort(reads, num_keys=2, is_stable=False)
    return sorted_slots, numbers // slots.shape[-1], weights


def _in_tiles(array: Array) -> Array:
    """Cuts the reads into tiles, each of which one copy brings."""
    array = jnp.pad(array, (0, -len(array) % READS_PER_TILE))
    return array.reshape(-1, SUBLANES, LANES)


def _sum_rows(
    starts, slots, tokens, weights, cotangent, out, tile, held, held_copied, *buffer
):
    step, (height, width) = pl.program_id(0), out.shape
    first, last = starts[step], starts[step + 1]
    rows, copied = buffer
    slot, token, weight = tile
    out[...] = jnp.zeros_like(out)

    @pl.when(step == 0)
    def _():
        held[0] = -1

    def copy(read):
        into = rem(read, ROWS_AHEAD)
        row = cotangent.at[pl.ds(_at(token, read), 1)]
        return pltpu.make_async_copy(row, rows.at[pl.ds(into, 1)], copied.at[into])

    def add(read):
        copy(read).wait()
        row = rows[pl.ds(rem(read, ROWS_AHEAD), 1)][:, :width]
        out[pl.ds(_at(slot, read) - step * height, 1)] += _at(weight, read) * row

    def add_tile(number, _):
        _hold(number, held, (slots, tokens, weights), tile, held_copied)
        begin = jnp.maximum(first - number * READS_PER_TILE, 0)
        end = jnp.minimum(last - number * READS_PER_TILE, READS_PER_TILE)
        keep_ahead(begin, end, ROWS_AHEAD, lambda read: copy(read).start(), add)

    tiles = div(last + READS_PER_TILE - 1, READS_PER_TILE)
    jax.lax.fori_loop(div(first, READS_PER_TILE), tiles, add_tile, None)


def _hold(number, held, arrays, tile, copied):
    """Copies a tile of each array, unless the step before has left the same one."""

    @pl.when(held[0] != number)
    def _():
        held[0] = number
        copies = [
            pltpu.make_async_copy(array.at[number], place, copied.at[0])
            for array, place in zip(arrays, tile, strict=True)
        ]
        for copy in copies:
            copy.start()
        for copy in copies:
            copy.wait()


def _at(tile, read):
    return tile[div(read, LANES), rem(read, LANES)]
