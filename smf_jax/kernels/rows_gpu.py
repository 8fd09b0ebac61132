"""What `rows.py` does, as Triton kernels for GPU (made for H100; not measured on one).

Each program owns a part of one sum or gradient and writes it once, so there are no
atomics and the bits are the same in every run. Rows are read where they lie, whatever
their width: no array is padded or copied.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

# A tile of 16 x 512 numbers is 64 registers of each of 128 threads, and 16 loads of 16
# bytes under way in each, which leaves room for several programs a multiprocessor.
READS_AT_ONCE = 16
COLUMNS = 512
# Of the table's gradient: most rows are read by few tokens or none.
PAIRS_AT_ONCE = 8
ROWS_PER_PROGRAM = 8


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
    at_once, columns = _tile(reads, width)

    def sum_rows(values, slots, weights, out):
        token = pl.program_id(0)
        column = pl.program_id(1) * columns + jnp.arange(columns)

        def add(step, sums):
            read = step * at_once + jnp.arange(at_once)
            slot = _load(slots, (token, read), read < reads)
            weight = _load(weights, (token, read), read < reads)
            there = (weight != 0)[:, None] & (column < width)[None]
            rows = _load(values, (slot[:, None], column[None]), there)
            return sums + weight[:, None] * rows

        start = jnp.zeros((at_once, columns), jnp.float32)
        sums = jax.lax.fori_loop(0, pl.cdiv(reads, at_once), add, start).sum(0)
        place = out.at[token, column]
        plgpu.store(place, sums.astype(out.dtype), mask=column < width)

    out = _call(
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
    at_once, columns = _tile(reads, width)

    def multiply(values, slots, cotangent, out):
        token = pl.program_id(0)
        read = pl.program_id(1) * at_once + jnp.arange(at_once)
        slot = _load(slots, (token, read), read < reads)

        def add(step, sums):
            column = step * columns + jnp.arange(columns)
            there = (read < reads)[:, None] & (column < width)[None]
            rows = _load(values, (slot[:, None], column[None]), there)
            return sums + rows * _load(cotangent, (token, column), column < width)[None]

        start = jnp.zeros((at_once, columns), jnp.float32)
        sums = jax.lax.fori_loop(0, pl.cdiv(width, columns), add, start).sum(1)
        plgpu.store(out.at[token, read], sums, mask=read < reads)

    out = _call(
        multiply,
        (tokens, pl.cdiv(reads, at_once)),
        jax.ShapeDtypeStruct((tokens, reads), jnp.float32),
        interpret,
    )(values, slots, cotangent)
    return out.reshape(*batch, reads)


def table_gradient(
    cotangent: Float[Array, "*batch value_dim"],
    slots: Int[Array, "*batch reads"],
    weights: Float[Array, "*batch reads"],
    num_slots: int,
    *,
    interpret: bool = False,
) -> Float[Array, "num_slots value_dim"]:
    """Returns what `rows.table_gradient` does, summed in the order of the tokens.

    Reads are sorted by slot, and the reads of a row are summed by one program for each
    `COLUMNS` of it: where all tokens read one slot, few programs do all the work.
    Beside the gradient it holds some numbers a read and one a slot.
    """
    reads, width = slots.shape[-1], cotangent.shape[-1]
    cotangent, weights = cotangent.reshape(-1, width), weights.reshape(-1)
    # Two operands: XLA has a radix sort for those.
    numbers = jnp.arange(slots.size, dtype=jnp.int32)
    slots, order = jax.lax.sort((slots.reshape(-1), numbers), num_keys=1)
    starts = jnp.searchsorted(slots, jnp.arange(num_slots + 1, dtype=slots.dtype))
    at_once, columns = PAIRS_AT_ONCE, _tile(reads, width)[1]

    def sum_pairs(starts, order, weights, cotangent, out):
        column = pl.program_id(1) * columns + jnp.arange(columns)
        first = pl.program_id(0) * ROWS_PER_PROGRAM

        def of_row(slot, _):
            begin, end = starts[slot], starts[slot + 1]

            def add(step, sums):
                place = begin + step * at_once + jnp.arange(at_once)
                pair = _load(order, (place,), place < end)
                weight = _load(weights, (pair,), place < end)
                there = (place < end)[:, None] & (column < width)[None]
                at = ((pair // reads)[:, None], column[None])
                return sums + weight[:, None] * _load(cotangent, at, there)

            sums = jnp.zeros((at_once, columns), jnp.float32)
            sums = jax.lax.fori_loop(0, pl.cdiv(end - begin, at_once), add, sums)
            plgpu.store(out.at[slot, column], sums.sum(0), mask=column < width)

        last = jnp.minimum(first + ROWS_PER_PROGRAM, num_slots)
        jax.lax.fori_loop(first, last, of_row, None)

    return _call(
        sum_pairs,
        (pl.cdiv(num_slots, ROWS_PER_PROGRAM), pl.cdiv(width, columns)),
        jax.ShapeDtypeStruct((num_slots, width), jnp.float32),
        interpret,
    )(starts, order, weights, cotangent)


def _tile(reads: int, width: int) -> tuple[int, int]:
    """Returns the reads and the columns of a tile, which Triton has in powers of 2."""
    return (
        min(READS_AT_ONCE, pl.next_power_of_2(reads)),
        min(COLUMNS, pl.next_power_of_2(width)),
    )


def _load(ref, at, there):
    """Returns what is at some places, in float32 but for ids; 0 where nothing is."""
    found = plgpu.load(ref.at[at], mask=there, other=0)
    is_number = jnp.issubdtype(ref.dtype, jnp.floating)
    return found.astype(jnp.float32) if is_number else found


def _call(kernel, grid, out_shape, interpret):
    params = plgpu.CompilerParams(num_warps=4)
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=out_shape,
        compiler_params=params,
        interpret=interpret,
    )
