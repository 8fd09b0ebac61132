"""What `rows.py` does, as Mosaic kernels for TPU (not measured on one).

A table stays in HBM, as it lies there: a row of float32 is copied by itself, and of
bfloat16 with its neighbour, since both share words of 32 bits. Ids come block by block
into SMEM, so that there may be any number of them. Rows are copied some blocks ahead of
their sums.

A table is copied, whole and in each call, where value_dim is no multiple of 128, and
one of bfloat16 also where num_slots is odd: XLA lays such tables out otherwise.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.lax import div, rem  # `//` and `%` look at signs, which costs scalars time
from jaxtyping import Array, Float, Int

LANES, SUBLANES = 128, 8  # of a tile of 32-bit numbers
BUFFERS = 4  # of rows: of one the sum is made, into the others rows are copied
BYTES_PER_BUFFER = 2**19  # on a v5e as many arrive in about 0.6 us
IDS_PER_STEP = 2**14  # of the 1 MB of SMEM, 64 KiB, twice
BYTES_PER_OUTPUT = 2**20  # of the 16 MB of VMEM that a kernel has, twice
ROWS_AHEAD = 16  # of the table's gradient
PAIRS_PER_TILE = SUBLANES * LANES


def weighted_rows(
    values: Float[Array, "num_slots value_dim"],
    slots: Int[Array, "*batch reads"],
    weights: Float[Array, "*batch reads"],
    *,
    interpret: Any = False,
) -> Float[Array, "*batch value_dim"]:
    """Returns what `rows.weighted_rows` does, without its gradients.

    Args:
      values: The table.
      slots: Ids below num_slots.
      weights: Of each read.
      interpret: As `pallas_call` takes it: run it step by step on a CPU, for tests.
    """
    *batch, reads = slots.shape
    width = values.shape[1]
    size, parts = _parts(reads, width)
    table, slots = _aligned(values), _in_parts(slots, size, mode="edge")
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
    table, slots = _aligned(values), _in_parts(slots, size, mode="edge")
    cotangent = _aligned(cotangent.reshape(-1, width).astype(jnp.float32))

    def multiply(part, rows, cotangent, out):
        token = pl.ds(div(part, parts), 1)
        products = (rows * cotangent[token]).sum(1, keepdims=True)
        out[pl.ds(part, 1)] = products.T

    out = jax.ShapeDtypeStruct(slots.shape, jnp.float32)
    products = _for_parts(multiply, table, slots, cotangent, out, parts, interpret)
    return products.reshape(-1, parts * size)[:, :reads].reshape(*batch, reads)


def table_gradient(
    cotangent: Float[Array, "*batch value_dim"],
    slots: Int[Array, "*batch reads"],
    weights: Float[Array, "*batch reads"],
    num_slots: int,
    *,
    interpret: Any = False,
) -> Float[Array, "num_slots value_dim"]:
    """Returns what `rows.table_gradient` does, summed in the order of the tokens.

    Reads are sorted by slot, and the gradient is written block by block of rows.
    Beside it, this holds some numbers a read.
    """
    reads, width = slots.shape[-1], cotangent.shape[-1]
    rows = _aligned(cotangent.reshape(-1, width).astype(jnp.float32))
    numbers = jnp.arange(slots.size, dtype=jnp.int32)
    pairs = slots.reshape(-1), numbers, weights.reshape(-1).astype(jnp.float32)
    # With the numbers as keys no two are equal, which spares a stable sort.
    slots, numbers, weights = jax.lax.sort(pairs, num_keys=2, is_stable=False)
    pairs = slots, numbers // reads, weights
    height = max(SUBLANES, BYTES_PER_OUTPUT // (4 * width) // SUBLANES * SUBLANES)
    height = min(num_slots, height)
    steps = pl.cdiv(num_slots, height)
    ends = jnp.minimum(jnp.arange(steps + 1) * height, num_slots)
    starts = jnp.searchsorted(slots, ends.astype(slots.dtype))

    def sum_pairs(starts, slots, tokens, weights, rows, out, *scratch):
        tile, buffer, copied, tile_copied, held = scratch
        step = pl.program_id(0)
        first, last = starts[step], starts[step + 1]
        out[...] = jnp.zeros_like(out)

        @pl.when(step == 0)
        def _():
            held[0] = -1

        def of_tile(number, _):
            _hold(number, held, (slots, tokens, weights), tile, tile_copied)
            begin = jnp.maximum(first - number * PAIRS_PER_TILE, 0)
            end = jnp.minimum(last - number * PAIRS_PER_TILE, PAIRS_PER_TILE)
            slot, token, weight = tile

            def copy(pair):
                into = rem(pair, ROWS_AHEAD)
                row = rows.at[pl.ds(_of_tile(token, pair), 1)]
                place = buffer.at[pl.ds(into, 1)]
                return pltpu.make_async_copy(row, place, copied.at[into])

            def add(pair):
                copy(pair).wait()
                row = buffer[pl.ds(rem(pair, ROWS_AHEAD), 1)][:, :width]
                place = pl.ds(_of_tile(slot, pair) - step * height, 1)
                out[place] += _of_tile(weight, pair) * row

            _ahead(begin, end, ROWS_AHEAD, lambda pair: copy(pair).start(), add)

        tiles = div(last + PAIRS_PER_TILE - 1, PAIRS_PER_TILE)
        jax.lax.fori_loop(div(first, PAIRS_PER_TILE), tiles, of_tile, None)

    hbm = pl.BlockSpec(memory_space=pltpu.HBM)
    numbers = [pltpu.SMEM((SUBLANES, LANES), leaf.dtype) for leaf in pairs]
    return pl.pallas_call(
        sum_pairs,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(steps,),
            in_specs=[hbm] * 4,
            out_specs=pl.BlockSpec((height, width), lambda step, starts: (step, 0)),
            scratch_shapes=[
                numbers,
                pltpu.VMEM((ROWS_AHEAD, rows.shape[1]), jnp.float32),
                pltpu.SemaphoreType.DMA((ROWS_AHEAD,)),
                pltpu.SemaphoreType.DMA((1,)),
                pltpu.SMEM((1,), jnp.int32),  # the tile that `numbers` are of
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((num_slots, width), jnp.float32),
        interpret=interpret,
    )(starts.astype(jnp.int32), *map(_in_tiles, pairs), rows)


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


def _aligned(table: Array) -> Array:
    """Returns a table whose rows can be copied: the same one at usual sizes."""
    packing = 4 // table.dtype.itemsize
    lacking = -table.shape[0] % packing, -table.shape[1] % LANES
    return jnp.pad(table, [(0, some) for some in lacking]) if any(lacking) else table


def _for_parts(use, table, slots, given, out, parts, interpret):
    """Calls `use(part, rows, given, out)` for the reads of each part.

    `given` and `out` are arrays of a row for each part or for each token, and come in
    blocks of the same tokens.
    """
    size, width = slots.shape[1], table.shape[1]
    tokens = len(slots) // parts
    most = min(IDS_PER_STEP // (parts * size), BYTES_PER_OUTPUT // (4 * width))
    height = min(tokens, max(most // SUBLANES, 1) * SUBLANES)
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
                rows = _unpack(rows, slots_again[pl.ds(part, 1)].T & 1 == 1)
            use(part, rows, given, out)

        _ahead(0, here, BUFFERS, start, finish)

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
        interpret=interpret,
    )(slots, slots, given, table)


def _unpack(words, is_odd):
    """Returns rows of bfloat16 as float32, of words that two rows share."""
    upper = jnp.where(is_odd, words & jnp.uint32(0xFFFF0000), words << 16)
    return jax.lax.bitcast_convert_type(upper, jnp.float32)


def _ahead(begin, end, ahead, start, finish):
    """Starts what is to be finished so many rounds ahead."""

    def first(item, _):
        start(item)

    def then(item, _):
        finish(item)

        @pl.when(item + ahead < end)
        def _():
            start(item + ahead)

    jax.lax.fori_loop(begin, jnp.minimum(begin + ahead, end), first, None)
    jax.lax.fori_loop(begin, end, then, None)


def _in_tiles(array: Array) -> Array:
    """Cuts [pairs] into tiles, each of which one copy brings."""
    array = jnp.pad(array, (0, -len(array) % PAIRS_PER_TILE))
    return array.reshape(-1, SUBLANES, LANES)


def _of_tile(tile, pair):
    return tile[div(pair, LANES), rem(pair, LANES)]


def _hold(number, held, arrays, tile, copied):
    """Copies a tile of each array, unless that of the step before is the same."""

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
