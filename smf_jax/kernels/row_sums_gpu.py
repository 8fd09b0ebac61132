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
SUM_TILE = (8, 256)
MULTIPLY_TILE = (32, 256)
COLUMNS = 512
ROWS_PER_PROGRAM = 8
# A run is a sequence of reads of one slot that a program of its own sums.
MIN_RUN, MAX_RUNS = 512, 1024
# Most rows are read by few tokens or none; the row of a run by very many.
READS_PER_ROW_STEP, READS_PER_RUN_STEP = 1, 8


def weighted_rows(
    values: Float[Array, "num_slots value_dim"],
    slots: Int[Array, "*batch reads"],
    weights: Float[Array, "*batch reads"],
    platform: str,
) -> Float[Array, "*batch value_dim"]:
    """Returns what `row_sums_xla.weighted_rows` does.

    A row of weight 0 is not read, so a device that holds few of the slots reads few
    rows, and non-finite numbers in such a row do not propagate.
    """
    *batch, reads = slots.shape
    slots, weights = (leaf.reshape(-1, reads) for leaf in (slots, weights))
    tokens, width = len(slots), values.shape[1]
    step_reads, columns = map(_tile, (reads, width), SUM_TILE)

    def sum_rows(values, slots, weights, out):
        token = pl.program_id(0)
        column = pl.program_id(1) * columns + jnp.arange(columns)

        def add(step, sums):
            read = step * step_reads + jnp.arange(step_reads)
            slot = _load(slots, (token, read), read < reads)
            weight = _load(weights, (token, read), read < reads)
            mask = (weight != 0)[:, None] & (column < width)[None]
            rows = _load(values, (slot[:, None], column[None]), mask)
            return sums + weight[:, None] * rows

        zeros = jnp.zeros((step_reads, columns), jnp.float32)
        sums = jax.lax.fori_loop(0, pl.cdiv(reads, step_reads), add, zeros).sum(0)
        out = out.at[token, column]
        plgpu.store(out, sums.astype(out.dtype), mask=column < width)

    run = _call(sum_rows, platform, tokens, columns, (tokens, width), values.dtype)
    out = run(values, slots, weights)
    return out.reshape(*batch, width)


def weight_gradient(
    values: Float[Array, "num_slots value_dim"],
    slots: Int[Array, "*batch reads"],
    cotangent: Float[Array, "*batch value_dim"],
    platform: str,
) -> Float[Array, "*batch reads"]:
    """Returns what `row_sums_xla.weight_gradient` does."""
    *batch, reads = slots.shape
    slots = slots.reshape(-1, reads)
    tokens, width = len(slots), values.shape[1]
    cotangent = cotangent.reshape(tokens, width)
    step_reads, columns = map(_tile, (reads, width), MULTIPLY_TILE)

    def multiply(values, slots, cotangent, out):
        token = pl.program_id(0)
        read = pl.program_id(1) * step_reads + jnp.arange(step_reads)
        slot = _load(slots, (token, read), read < reads)

        def add(step, sums):
            column = step * columns + jnp.arange(columns)
            mask = (read < reads)[:, None] & (column < width)[None]
            rows = _load(values, (slot[:, None], column[None]), mask)
            return sums + rows * _load(cotangent, (token, column), column < width)[None]

        zeros = jnp.zeros((step_reads, columns), jnp.float32)
        sums = jax.lax.fori_loop(0, pl.cdiv(width, columns), add, zeros).sum(1)
        plgpu.store(out.at[token, read], sums, mask=read < reads)

    run = _call(multiply, platform, tokens, step_reads, (tokens, reads))
    out = run(values, slots, cotangent)
    return out.reshape(*batch, reads)


def table_gradient(
    cotangent: Float[Array, "*batch value_dim"],
    slots: Int[Array, "*batch reads"],
    weights: Float[Array, "*batch reads"],
    num_slots: int,
    platform: str,
) -> Float[Array, "num_slots value_dim"]:
    """Returns what `row_sums_xla.table_gradient` does, with the same bits in every run.

    Reads are sorted by slot, and one program sums the reads of a row. A row of very
    many reads would keep its program busy while others idle, so runs of `MIN_RUN`
    reads or more of one slot are summed first, each by its own program. Beside the
    gradient this takes memory for a few numbers per read, one per slot, and `MAX_RUNS`
    rows.
    """
    reads, width = slots.shape[-1], cotangent.shape[-1]
    cotangent, weights = cotangent.reshape(-1, width), weights.reshape(-1)
    # Two operands: XLA has a radix sort for those.
    numbers = jnp.arange(slots.size, dtype=jnp.int32)
    slots, order = jax.lax.sort((slots.reshape(-1), numbers), num_keys=1)
    # Start of each slot's reads; five times as fast as a binary search for each.
    next_slot = jnp.minimum(slots, num_slots) + 1
    counts = jnp.zeros(num_slots + 1, jnp.int32).at[next_slot].add(1, mode="drop")
    starts = jnp.cumsum(counts)
    run = max(MIN_RUN, pl.next_power_of_2(pl.cdiv(slots.size, MAX_RUNS)))
    columns = _tile(width, COLUMNS)
    sizes = _Sizes(num_slots, reads, width, columns, run)

    def run_kernel(kernel, programs, rows, *arrays):
        kernel = functools.partial(kernel, sizes)
        return _call(kernel, platform, programs, columns, (rows, width))(*arrays)

    sorted_reads, runs = (order, weights, cotangent), slots.size // run
    if runs:
        run_sums = run_kernel(_sum_run, runs, runs, slots, *sorted_reads)
    else:
        run_sums = jnp.zeros((1, width), jnp.float32)
    programs = pl.cdiv(num_slots, ROWS_PER_PROGRAM)
    arrays = (starts, run_sums, *sorted_reads)
    return run_kernel(_sum_rows, programs, num_slots, *arrays)


class _Sizes(NamedTuple):
    num_slots: int
    reads: int  # of a token
    width: int
    columns: int  # that one program sums
    run: int  # reads


def _columns_and_zeros(sizes: _Sizes, step_reads: int):
    column = pl.program_id(1) * sizes.columns + jnp.arange(sizes.columns)
    return column, jnp.zeros((step_reads, sizes.columns), jnp.float32)


def _add_reads(sizes: _Sizes, sums, begin, end, column, order, weights, cotangent):
    step_reads = len(sums)

    def add(step, sums):
        index = begin + step * step_reads + jnp.arange(step_reads)
        read = _load(order, (index,), index < end)
        weight = _load(weights, (read,), index < end)
        mask = (index < end)[:, None] & (column < sizes.width)[None]
        token = (read // sizes.reads)[:, None]
        rows = _load(cotangent, (token, column[None]), mask)
        return sums + weight[:, None] * rows

    return jax.lax.fori_loop(0, pl.cdiv(end - begin, step_reads), add, sums)


def _sum_run(sizes: _Sizes, slots, order, weights, cotangent, out):
    column, sums = _columns_and_zeros(sizes, READS_PER_RUN_STEP)
    begin = pl.program_id(0) * sizes.run
    end = begin + sizes.run
    slot = slots[begin]
    is_one_slot = (slot == slots[end - 1]) & (slot < sizes.num_slots)
    # The sum of a run of several slots is never read.
    end = jnp.where(is_one_slot, end, begin)
    sums = _add_reads(sizes, sums, begin, end, column, order, weights, cotangent)
    out = out.at[pl.program_id(0), column]
    plgpu.store(out, sums.sum(0), mask=column < sizes.width)


def _sum_rows(sizes: _Sizes, starts, run_sums, order, weights, cotangent, out):
    column, zeros = _columns_and_zeros(sizes, READS_PER_ROW_STEP)
    _, run_zeros = _columns_and_zeros(sizes, READS_PER_RUN_STEP)
    first = pl.program_id(0) * ROWS_PER_PROGRAM
    arrays = (column, order, weights, cotangent)

    def sum_row(slot, _):
        begin, end = starts[slot], starts[slot + 1]
        first_run, last_run = pl.cdiv(begin, sizes.run), end // sizes.run
        runs = jnp.maximum(last_run - first_run, 0)
        head = jnp.where(runs > 0, first_run * sizes.run, end)
        tail = jnp.where(runs > 0, last_run * sizes.run, end)

        def add_runs(step, sums):
            number = first_run + step * READS_PER_RUN_STEP
            number = number + jnp.arange(READS_PER_RUN_STEP)
            mask = (number < last_run)[:, None] & (column < sizes.width)[None]
            return sums + _load(run_sums, (number[:, None], column[None]), mask)

        sums = _add_reads(sizes, zeros, begin, head, *arrays)
        sums = _add_reads(sizes, sums, tail, end, *arrays).sum(0)
        steps = pl.cdiv(runs, READS_PER_RUN_STEP)
        of_runs = jax.lax.fori_loop(0, steps, add_runs, run_zeros)
        total = sums + of_runs.sum(0)
        plgpu.store(out.at[slot, column], total, mask=column < sizes.width)

    last = jnp.minimum(first + ROWS_PER_PROGRAM, sizes.num_slots)
    jax.lax.fori_loop(first, last, sum_row, None)


def _tile(size: int, largest: int) -> int:
    """Returns the size of a tile, which Triton needs to be a power of 2."""
    return min(largest, pl.next_power_of_2(size))


def _load(ref, index, mask):
    """Returns elements, 0 where masked, floats as float32."""
    found = plgpu.load(ref.at[index], mask=mask, other=0)
    is_float = jnp.issubdtype(ref.dtype, jnp.floating)
    return found.astype(jnp.float32) if is_float else found


def _call(kernel, platform, programs, columns, shape, dtype=jnp.float32):
    return pl.pallas_call(
        kernel,
        grid=(programs, pl.cdiv(shape[1], columns)),
        out_shape=jax.ShapeDtypeStruct(shape, dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4),
        interpret=platform == "cpu",  # in tests
    )
