"""Works of the memory layer alone: reading rows, their gradients, ranking keys."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from smf_jax.bench.config import BenchConfig
from smf_jax.bench.timing import Work
from smf_jax.config import ComputeConfig
from smf_jax.kernels.product_key import product_key_top_k
from smf_jax.kernels.row_sums import Kernels, kernels
from smf_jax.kernels.table_rows import put_rows, selected_rows_gradient, take_rows
from smf_jax.sharding import ONE_DEVICE, MeshLayout

COPIED = 2**28  # bytes: more than any cache holds
ROWS_WRITTEN = 10_000  # more than a large batch chooses
DRAWN = 2**14  # rows, as a table takes long to draw


class Reading(NamedTuple):
    """Reads of a batch, on the host."""

    values: np.ndarray  # [num_slots, value_dim] float32
    slots: np.ndarray  # [tokens, reads]
    weights: np.ndarray  # [tokens, reads]
    cotangent: np.ndarray  # [tokens, value_dim] float32
    chosen: np.ndarray  # [top_t]
    table: str  # the type that rows and cotangents are given

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return self.values.shape[1] * jax.numpy.dtype(self.table).itemsize

    @property
    def bytes_read(self) -> int:
        """Bytes of all rows that are read, each as often as it is."""
        return self.slots.size * self.width

    @property
    def bytes_of_gradient(self) -> int:
        """The fewest bytes of a table's float32 gradient: it, and each token's once."""
        return self.values.size * 4 + len(self.cotangent) * self.width


class Moving(NamedTuple):
    """A work, and the fewest bytes it moves; none told for arithmetic."""

    work: Work
    bytes: int | None


def draw(config: BenchConfig) -> Reading:
    """Returns reads of random slots."""
    memory, tokens = config.model.memory, config.texts * config.seq_len
    rng = np.random.default_rng(0)
    reads = (tokens, memory.num_heads * memory.top_k)
    slots = rng.integers(0, memory.num_slots, reads, np.int32)
    shape = (memory.num_slots, memory.value_dim)
    some = rng.standard_normal((min(DRAWN, shape[0]), shape[1]), np.float32)
    return Reading(
        np.resize(some, shape),  # the same ones again
        slots,
        rng.random(reads, np.float32) / memory.top_k,
        rng.standard_normal((tokens, memory.value_dim), np.float32),
        rng.permutation(np.unique(slots))[: config.top_t].astype(np.int32),
        config.table,
    )


def ours(reading: Reading) -> dict[str, Moving]:
    """Returns the works of a lookup, by XLA and, where they are for it, by kernels."""
    as_table = functools.partial(jax.numpy.asarray, dtype=reading.table)
    values, cotangent = map(as_table, (reading.values, reading.cotangent))
    of_host = (reading.slots, reading.weights, reading.chosen)
    slots, weights, chosen = map(jax.numpy.asarray, of_host)
    of_chosen = jax.jit(selected_rows_gradient, static_argnums=(0, 5))
    reads = (cotangent, slots, weights, chosen, len(values))
    work = functools.partial(of_chosen, ONE_DEVICE, *reads)
    works = {"chosen rows' gradient, smf_jax": Moving(work, None)}
    for name, way in _ways().items():
        reads = (cotangent, slots, weights, len(values))
        # As many reads of one slot as there are: no two threads may add at once.
        crowded = (cotangent, jax.numpy.zeros_like(slots), *reads[2:])
        forward = jax.jit(way.weighted_rows)
        of_weights = jax.jit(way.weight_gradient)
        of_table = jax.jit(way.table_gradient, static_argnums=3)
        read, made = reading.bytes_read, reading.bytes_of_gradient
        for what, function, arguments, moved in (
            ("rows summed", forward, (values, slots, weights), read),
            ("weights' gradient", of_weights, (values, slots, cotangent), read),
            ("table's gradient", of_table, reads, made),
            ("table's gradient, all of one slot", of_table, crowded, made),
        ):
            work = functools.partial(function, *arguments)
            works[f"{what}, {name}"] = Moving(work, moved)
    return works


def _ways() -> dict[str, Kernels]:
    of_xla = kernels(ONE_DEVICE)
    if jax.default_backend() == "cpu":
        return {"smf_jax": of_xla}
    layout = MeshLayout(compute=ComputeConfig(lookup="pallas"))
    return {"XLA": of_xla, "kernels": kernels(layout)}


def copy() -> dict[str, Moving]:
    """Returns the work that others are measured by."""
    array = jax.numpy.zeros(COPIED // 4)
    work = functools.partial(jax.jit(lambda array: array + 1), array)
    return {"copying": Moving(work, 2 * COPIED)}  # read and written


def writing(reading: Reading) -> dict[str, Moving]:
    """Returns the work that adds to rows of a table."""
    table = jax.numpy.array(reading.values)  # its own: it is donated
    count = min(ROWS_WRITTEN, len(table))
    slots = np.random.default_rng(1).permutation(len(table))[:count].astype(np.int32)
    updates = jax.numpy.ones((count, table.shape[1]))

    def add_rows(table, updates, slots):
        rows = take_rows(ONE_DEVICE, table, slots)
        return put_rows(ONE_DEVICE, table, slots, rows + updates)

    write = jax.jit(add_rows, donate_argnums=0)

    def work():
        nonlocal table
        table = write(table, updates, slots)
        return table

    # Rows are read and written, updates read.
    return {"rows written in place, smf_jax": Moving(work, 3 * updates.nbytes)}


def draw_keys(config: BenchConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns queries [texts, seq, heads, 2, half] and keys [heads, 2, keys, half]."""
    memory = config.model.memory
    pair = (memory.num_heads, 2)
    half = memory.key_dim // 2
    shapes = (
        (config.texts, config.seq_len, *pair, half),
        (*pair, memory.num_keys, half),
    )
    rng = np.random.default_rng(0)
    query, keys = (rng.standard_normal(shape, np.float32) for shape in shapes)
    return query, keys


def ranking(config: BenchConfig) -> dict[str, Work]:
    """Returns the work that finds each token's best slots."""
    memory = config.model.memory
    rank = jax.jit(product_key_top_k, static_argnums=2)
    arrays = map(jax.numpy.asarray, draw_keys(config))
    work = functools.partial(rank, *arrays, memory.top_k)
    return {"slots ranked, smf_jax": work}
