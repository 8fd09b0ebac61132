"""Works of the memory layer alone: reading rows, their gradients, ranking keys."""

from typing import NamedTuple

import jax
import numpy as np

from smf_jax.bench.config import BenchConfig
from smf_jax.bench.timing import Work, done
from smf_jax.kernels import rows
from smf_jax.kernels.product_key import product_key_top_k
from smf_jax.optim.rows import write_rows

ROWS_WRITTEN = 10_000  # more than a large batch chooses
WRITTEN = "rows written in place, smf_jax"


class Reading(NamedTuple):
    """Reads of a batch, on the host."""

    values: np.ndarray  # [num_slots, value_dim]
    slots: np.ndarray  # [tokens, reads]
    weights: np.ndarray  # [tokens, reads]
    cotangent: np.ndarray  # [tokens, value_dim]
    chosen: np.ndarray  # [top_t]

    @property
    def bytes_read(self) -> int:
        """Bytes of all rows that are read, each as often as it is."""
        return self.slots.size * self.values.shape[1] * self.values.itemsize


def draw(config: BenchConfig) -> Reading:
    """Returns reads of random slots."""
    memory, tokens = config.model.memory, config.texts * config.seq_len
    rng = np.random.default_rng(0)
    reads = (tokens, memory.num_heads * memory.top_k)
    slots = rng.integers(0, memory.num_slots, reads, np.int32)
    return Reading(
        rng.standard_normal((memory.num_slots, memory.value_dim), np.float32),
        slots,
        rng.random(reads, np.float32) / memory.top_k,
        rng.standard_normal((tokens, memory.value_dim), np.float32),
        rng.permutation(np.unique(slots))[: config.top_t].astype(np.int32),
    )


def ours(reading: Reading) -> dict[str, Work]:
    """Returns the works of a lookup."""
    values, slots, weights, cotangent, chosen = map(jax.numpy.asarray, reading)
    num_slots = len(values)
    forward = jax.jit(rows.weighted_rows)
    of_chosen = jax.jit(rows.chosen_rows_gradient, static_argnums=4)
    of_weights = jax.jit(rows.weight_gradient)
    reads = (cotangent, slots, weights)
    return {
        "rows summed, smf_jax": done(forward, values, slots, weights),
        "chosen rows' gradient, smf_jax": done(of_chosen, *reads, chosen, num_slots),
        "weights' gradient, smf_jax": done(of_weights, values, slots, cotangent),
    }


def writing(reading: Reading) -> tuple[dict[str, Work], int]:
    """Returns the work that adds to rows of a table, and the bytes it moves."""
    table = jax.numpy.asarray(reading.values) + 0  # its own: it is donated
    count = min(ROWS_WRITTEN, len(table))
    slots = np.random.default_rng(1).permutation(len(table))[:count].astype(np.int32)
    updates = jax.numpy.ones((count, table.shape[1]))
    write = jax.jit(write_rows, donate_argnums=0)

    def work():
        nonlocal table
        table = jax.block_until_ready(write(table, updates, slots))

    # Rows are read and written, updates read.
    return {WRITTEN: work}, 3 * updates.nbytes


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
    return {"slots ranked, smf_jax": done(rank, *arrays, memory.top_k)}
