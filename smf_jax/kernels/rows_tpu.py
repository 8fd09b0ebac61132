"""What `rows.py` does, as Mosaic kernels for TPU (not measured on one).

A table stays in HBM, as it lies there: a row of float32 is copied by itself, and of
bfloat16 with its neighbour, since both share words of 32 bits. Ids come block by block
into SMEM, so that there may be any number of them. Rows are copied some blocks ahead of
their sums.

A table is copied, whole and in each call, where value_dim is no multiple of 128, which
XLA lays out otherwise, and one of bfloat16 also where num_slots is odd.

Every read costs a copy, also one of weight 0, which stands for a slot that another
device holds.
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
from smf_jax.kernels.table_tpu import table_gradient

__all__ = ["table_gradient", "weight_gradient", "weighted_rows"]

BUFFERS = 4  # of rows: of one the sum is made, into the others rows are copied
BYTES_PER_BUFFER = 2**19  # on a v5e as many arrive in about 0.6 us
IDS_PER_STEP = 2**14  # of the 1 MB of SMEM, 64 KiB, twice


def weighted_rows(
    values: Float[Array, "num_slots value_dim"],
    slots: Int[Array, "*batch reads"],
    weights: Float[Array, "*batch reads"],
    *,
    interpret: Any = False,
) -> Float[Array, "*batch value_dim"]:
    """Returns what `rows.weighted_rows` does; `sharded.py` gives it its gradients.

    Args:
      values: The table.
      slots: Ids below num_slots.
      weights: Of each read.
      interpret: As `pallas_call` takes it: run it step by step on a CPU, for tests.
    """
    *batch, reads = slots.shape
    width = values.shape[1]
    size, parts = _parts(reads, width)
    table, slots = aligned(values), _in_parts(slots, size, mode="edge")
    weights = _in_parts(weights.astype(jnp.float32), size, constant_values=0)

    def sum_rows(part, rows, weights, out):
        token = pl.ds(div(part, parts), 1)
        sums = (rows * weights[pl.ds(part, 1)].T).sum(0, keepdims=True)
        before = jnp.where(rem(part, parts) == 0, 0.0, out[token])  # may be anything
        out[token] = before + sums

    tokens = len(slots) // parts
    out = jax.ShapeDtypeStruct((tokens, table.shape[1]), jnp.float32)
    sums = _for_parts(sum_rows, table, slots, weights, out, parts, interpret)
    return sums[:, :width].astype(values.dtype).reshape(*batch, width)


def weight_gradient(
    values: Float[Array, "num_slots value_dim"],
    slots: Int[Array, "*batch reads"],
    cotangent: Float[Array, "*batch value_dim"],
    *,
    interpret: Any = False,
) -> Float[Array, "*batch reads"]:
    """Returns what `rows.weight_gradient` does."""
    *batch, reads = slots.shape
    width = values.shape[1]
    size, parts = _parts(reads, width)
    table, slots = aligned(values), _in_parts(slots, size, mode="edge")
    cotangent = aligned(cotangent.reshape(-1, width).astype(jnp.float32))

    def multiply(part, rows, cotangent, out):
        token = pl.ds(div(part, parts), 1)
        products = (rows * cotangent[token]).sum(1, keepdims=True)
        out[pl.ds(part, 1)] = products.T

    out = jax.ShapeDtypeStruct(slots.shape, jnp.float32)
    products = _for_parts(multiply, table, slots, cotangent, out, parts, interpret)
    return products.reshape(-1, parts * size)[:, :reads].reshape(*batch, reads)


def _parts(reads: int, width: int) -> tuple[int, int]:
    """Returns how many reads are copied at a time, and in how many parts they are."""
    row = 4 * pl.cdiv(width, LANES) * LANES
    most = max(BYTES_PER_BUFFER // row, SUBLANES)
    parts = pl.cdiv(reads, most)
    size = pl.cdiv(pl.cdiv(reads, parts), SUBLANES) * SUBLANES
    return size, pl.cdiv(reads, size)


def _in_parts(array: Array, size: int, **filling: Any) -> Array:
    """Cuts the reads of each token into parts: [tokens * parts, size]."""
    array = array.reshape(-1, array.shape[-1])
    lacking = -array.shape[1] % size
    return jnp.pad(array, ((0, 0), (0, lacking)), **filling).reshape(-1, size)


def _for_parts(use, table, slots, given, out, parts, interpret):
    """Calls `use(part, rows, given, out)` for the reads of each part.

    `given` and `out` are arrays of a row for each part or for each token, and come in
    blocks of the same tokens.
    """
    size, width = slots.shape[1], table.shape[1]
    tokens = len(slots) // parts
    ids = parts * pl.cdiv(size, LANES) * LANES  # as SMEM holds those of a token
    most = min(IDS_PER_STEP // ids, BYTES_PER_OUTPUT // (4 * width))
    height = in_sublanes(tokens, most)
    packed = table.dtype.itemsize == 2

    def kernel(slots, slots_again, given, table, out, buffer, copied):
        words = table.bitcast(jnp.uint32) if packed else table
        here = jnp.minimum(tokens - pl.program_id(0) * height, height) * parts

        def start(part):
            into = rem(part, BUFFERS)

            def copy(read, _):
                slot = slots[part, read]
                row = words.at[pl.ds(div(slot, 2) if packed else slot, 1)]
                place = buffer.at[into, pl.ds(read, 1)]
                pltpu.make_async_copy(row, place, copied.at[into]).start()

            jax.lax.fori_loop(0, size, copy, None, unroll=SUBLANES)

        def finish(part):
            block = buffer.at[rem(part, BUFFERS)]
            # For as many bytes as all its rows have.
            pltpu.make_async_copy(block, block, copied.at[rem(part, BUFFERS)]).wait()
            rows = block[...]
            if packed:
                rows = _unpack(rows, (slots_again[pl.ds(part, 1)].T & 1) == 1)
            use(part, rows, given, out)

        keep_ahead(0, here, BUFFERS, start, finish)

    def block(array, space=pltpu.VMEM):
        rows = height * (array.shape[0] // tokens)
        return pl.BlockSpec(
            (rows, array.shape[1]), lambda step: (step, 0), memory_space=space
        )

    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(tokens, height),),
        in_specs=[
            block(slots, pltpu.SMEM),
            block(slots),  # as a vector, for the halves of words
            block(given),
            pl.BlockSpec(memory_space=pltpu.HBM),
        ],
        out_specs=block(out),
        out_shape=out,
        scratch_shapes=[
            pltpu.VMEM((BUFFERS, size, width), jnp.uint32 if packed else jnp.float32),
            pltpu.SemaphoreType.DMA((BUFFERS,)),
        ],
        cost_estimate=pl.CostEstimate(
            flops=2 * slots.size * width,
            bytes_accessed=slots.size * width * 4,
            transcendentals=0,
        ),
        interpret=interpret,
    )(slots, slots, given, table)


def _unpack(words, is_odd):
    """Returns rows of bfloat16 as float32, of words that two rows share."""
    upper = jnp.where(is_odd, words & jnp.uint32(0xFFFF0000), words << 16)
    return jax.lax.bitcast_convert_type(upper, jnp.float32)
