"""Row sums and their gradients as Triton kernels for GPU (measured on an H100).

Each program owns one part of a sum or gradient and writes it once, so there are no
atomics and every run gives the same bits. Rows are read in place, whatever their width:
no array is padded or copied.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

# Tiles, reads x columns: the fastest of those tried on an H100.
SUMMED = (8, 256)
MULTIPLIED = (32, 256)
COLUMNS = 512
ROWS_PER_PROGRAM = 8
RUN, RUNS = 512, 1024  # least reads in a run of one slot; most runs
# Most rows are read by few tokens or none; the row of a run by very many.
PAIRS_OF_ROW, PAIRS_OF_RUN = 1, 8
WARPS = 4


def weighted_rows(
    values: Float[Array, "num_slots value_dim"],
    slots: Int[Array, "*batch reads"],
    weights: Float[Array, "*batch reads"],
    *,
    interpret: bool = False,
) -> Float[Array, "*batch value_dim"]:
    """Returns what `row_sums.weighted_rows` does; `sharded.py` gives it its gradients.

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
    at_once, columns = map(_tile, (reads, width), SUMMED)

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
    """Returns what `row_sums.weight_gradient` does."""
    *batch, reads = slots.shape
    slots = slots.reshape(-1, reads)
    tokens, width = len(slots), values.shape[1]
    cotangent = cotangent.reshape(tokens, width)
    at_once, columns = map(_tile, (reads, width), MULTIPLIED)

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
    """Returns what `row_sums.table_gradient` does, the same bits in every run.

    Reads are sorted by slot, and the reads of a row are summed by one program for each
    part of it. A row of very many reads would keep that busy while others rest: runs of
    `RUN` reads or more of one slot are summed before, each by a program of its own.
    Beside the gradient it holds some numbers a read, one a slot, and `RUNS` rows.
    """
    reads, width = slots.shape[-1], cotangent.shape[-1]
    cotangent, weights = cotangent.reshape(-1, width), weights.reshape(-1)
    # Two operands: XLA has a radix sort for those.
    numbers = jnp.arange(slots.size, dtype=jnp.int32)
    slots, order = jax.lax.sort((slots.reshape(-1), numbers), num_keys=1)
    # Of what comes after a slot: five times as fast as a binary search for each slot.
    after = jnp.minimum(slots, num_slots) + 1
    counts = jnp.zeros(num_slots + 1, jnp.int32).at[after].add(1, mode="drop")
    starts = jnp.cumsum(counts)
    run = max(RUN, pl.next_power_of_2(pl.cdiv(slots.size, RUNS)))
    columns = _tile(width, COLUMNS)
    sizes = _Sizes(num_slots, reads, width, columns, run)

    def run_kernel(kernel, programs, rows, *arrays):
        grid = (programs, pl.cdiv(width, columns))
        shape = jax.ShapeDtypeStruct((rows, width), jnp.float32)
        kernel = functools.partial(kernel, sizes)
        return _call(kernel, grid, shape, interpret)(*arrays)

    pairs, runs = (order, weights, cotangent), slots.size // run
    if runs:
        summed = run_kernel(_sum_run, runs, runs, slots, *pairs)
    else:
        summed = jnp.zeros((1, width), jnp.float32)
    programs = pl.cdiv(num_slots, ROWS_PER_PROGRAM)
    return run_kernel(_sum_rows, programs, num_slots, starts, summed, *pairs)


class _Sizes(NamedTuple):
    num_slots: int
    reads: int  # of a token
    width: int
    columns: int  # of them, that a program sums
    run: int  # reads


def _start(sizes: _Sizes, at_once: int):
    column = pl.program_id(1) * sizes.columns + jnp.arange(sizes.columns)
    return column, jnp.zeros((at_once, sizes.columns), jnp.float32)


def _add_pairs(sizes: _Sizes, sums, begin, end, column, order, weights, cotangent):
    """Returns sums with the reads from one place in their order to another."""

    at_once = len(sums)

    def add(step, sums):
        place = begin + step * at_once + jnp.arange(at_once)
        pair = _load(order, (place,), place < end)
        weight = _load(weights, (pair,), place < end)
        there = (place < end)[:, None] & (column < sizes.width)[None]
        at = ((pair // sizes.reads)[:, None], column[None])
        return sums + weight[:, None] * _load(cotangent, at, there)

    return jax.lax.fori_loop(0, pl.cdiv(end - begin, at_once), add, sums)


def _sum_run(sizes: _Sizes, slots, order, weights, cotangent, out):
    column, sums = _start(sizes, PAIRS_OF_RUN)
    begin = pl.program_id(0) * sizes.run
    end = begin + sizes.run
    slot = slots[begin]
    is_one = (slot == slots[end - 1]) & (slot < sizes.num_slots)
    # Of reads of several slots nothing is added, and nobody asks for their sum.
    end = jnp.where(is_one, end, begin)
    sums = _add_pairs(sizes, sums, begin, end, column, order, weights, cotangent)
    place = out.at[pl.program_id(0), column]
    plgpu.store(place, sums.sum(0), mask=column < sizes.width)


def _sum_rows(sizes: _Sizes, starts, summed, order, weights, cotangent, out):
    column, none = _start(sizes, PAIRS_OF_ROW)
    _, no_runs = _start(sizes, PAIRS_OF_RUN)
    first = pl.program_id(0) * ROWS_PER_PROGRAM
    pairs = (column, order, weights, cotangent)

    def of_row(slot, _):
        begin, end = starts[slot], starts[slot + 1]
        first_run, last_run = pl.cdiv(begin, sizes.run), end // sizes.run
        runs = jnp.maximum(last_run - first_run, 0)
        head = jnp.where(runs > 0, first_run * sizes.run, end)
        tail = jnp.where(runs > 0, last_run * sizes.run, end)

        def add(step, sums):
            number = first_run + step * PAIRS_OF_RUN + jnp.arange(PAIRS_OF_RUN)
            there = (number < last_run)[:, None] & (column < sizes.width)[None]
            return sums + _load(summed, (number[:, None], column[None]), there)

        sums = _add_pairs(sizes, none, begin, head, *pairs)
        sums = _add_pairs(sizes, sums, tail, end, *pairs).sum(0)
        of_runs = jax.lax.fori_loop(0, pl.cdiv(runs, PAIRS_OF_RUN), add, no_runs)
        total = sums + of_runs.sum(0)
        plgpu.store(out.at[slot, column], total, mask=column < sizes.width)

    last = jnp.minimum(first + ROWS_PER_PROGRAM, sizes.num_slots)
    jax.lax.fori_loop(first, last, of_row, None)


def _tile(size: int, most: int) -> int:
    """Returns a size of a tile, which Triton has in powers of 2."""
    return min(most, pl.next_power_of_2(size))


def _load(ref, at, there):
    """Returns what is at some places, in float32 but for ids; 0 where nothing is."""
    found = plgpu.load(ref.at[at], mask=there, other=0)
    is_number = jnp.issubdtype(ref.dtype, jnp.floating)
    return found.astype(jnp.float32) if is_number else found


def _call(kernel, grid, out_shape, interpret):
    """Returns a kernel that is compiled for GPU, or interpreted."""
    params = plgpu.CompilerParams(num_warps=WARPS)
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=out_shape,
        compiler_params=params,
        interpret=interpret,
    )
