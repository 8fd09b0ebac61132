"""Cases of a memory layer alone: row sums, their gradients, and slot ranking."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smf_jax.bench.config import BenchConfig
from smf_jax.bench.timing import Case
from smf_jax.config import ComputeConfig
from smf_jax.kernels.product_key import product_key_top_k
from smf_jax.kernels.row_sums import kernels
from smf_jax.kernels.table_rows import put_rows, selected_rows_gradient, take_rows
from smf_jax.sharding import ONE_DEVICE, MeshLayout

COPY_BYTES = 2**28  # larger than any cache
WRITTEN_ROWS = 10_000  # more than a large batch selects
DISTINCT_ROWS = 2**14  # drawn at random, and repeated to fill the table


class Inputs(NamedTuple):
    """Random reads of a batch, on the host."""

    values: np.ndarray  # [num_slots, value_dim] float32
    slots: np.ndarray  # [tokens, reads]
    weights: np.ndarray  # [tokens, reads]
    cotangent: np.ndarray  # [tokens, value_dim] float32
    selected: np.ndarray  # [top_t]
    dtype: str  # of rows and cotangents on the device
    read_bytes: int  # of all rows that are read, repeated ones included
    gradient_bytes: int  # least that a dense float32 gradient of the table moves


def draw_inputs(config: BenchConfig) -> Inputs:
    """Returns reads of random slots."""
    memory, tokens = config.model.memory, config.tokens
    rng = np.random.default_rng(0)
    reads = (tokens, memory.num_heads * memory.top_k)
    slots = rng.integers(0, memory.num_slots, reads, np.int32)
    shape = (memory.num_slots, memory.value_dim)
    rows = rng.standard_normal((min(DISTINCT_ROWS, shape[0]), shape[1]), np.float32)
    row_bytes = memory.value_dim * jnp.dtype(config.table).itemsize
    return Inputs(
        np.resize(rows, shape),
        slots,
        rng.random(reads, np.float32) / memory.top_k,
        rng.standard_normal((tokens, memory.value_dim), np.float32),
        rng.permutation(np.unique(slots))[: config.top_t].astype(np.int32),
        config.table,
        read_bytes=slots.size * row_bytes,
        gradient_bytes=math.prod(shape) * 4 + tokens * row_bytes,
    )


def lookup_cases(inputs: Inputs) -> dict[str, Case]:
    """Returns the cases of a lookup by XLA and, on GPU, by Pallas kernels."""
    values, cotangent = (
        jnp.asarray(array, inputs.dtype) for array in (inputs.values, inputs.cotangent)
    )
    slots, weights, selected = map(
        jnp.asarray, (inputs.slots, inputs.weights, inputs.selected)
    )
    buffer, num_slots = jnp.zeros(COPY_BYTES // 4), len(values)
    spread = (cotangent, slots, weights, num_slots)
    # All reads of one slot: the worst case for concurrent additions.
    crowded = (cotangent, jnp.zeros_like(slots), weights, num_slots)
    cases = {
        "copy": _case(lambda array: array + 1, buffer, amount=2 * COPY_BYTES),
        "selected rows' gradient": _case(
            functools.partial(selected_rows_gradient, ONE_DEVICE),
            *spread[:3],
            selected,
            num_slots,
        ),
        "rows written in place": _write_case(inputs),
    }
    layouts = {"XLA": ONE_DEVICE}
    if jax.default_backend() == "gpu":
        layouts["Pallas"] = MeshLayout(compute=ComputeConfig(lookup="pallas"))
    read, written = inputs.read_bytes, inputs.gradient_bytes
    for name, layout in layouts.items():
        module = kernels(layout)
        sums, of_weights = module.weighted_rows, module.weight_gradient
        of_table = module.table_gradient
        for work, function, arguments, amount in (
            ("row sums", sums, (values, slots, weights), read),
            ("weights' gradient", of_weights, (values, slots, cotangent), read),
            ("table's gradient", of_table, spread, written),
            ("table's gradient, 1 slot", of_table, crowded, written),
        ):
            function = functools.partial(function, platform=layout.platform)
            cases[f"{work}, {name}"] = _case(function, *arguments, amount=amount)
    return cases


def _case(function: Callable, *arguments: Any, amount: int | None = None) -> Case:
    static = [n for n, argument in enumerate(arguments) if isinstance(argument, int)]
    compiled = jax.jit(function, static_argnums=static)
    return Case(functools.partial(compiled, *arguments), amount)


def _write_case(inputs: Inputs) -> Case:
    table = jnp.array(inputs.values)  # a copy, as it is donated
    count = min(WRITTEN_ROWS, len(table))
    slots = np.random.default_rng(1).permutation(len(table))[:count].astype(np.int32)
    updates = jnp.ones((count, table.shape[1]))

    @functools.partial(jax.jit, donate_argnums=0)
    def add_rows(table, updates, slots):
        rows = take_rows(ONE_DEVICE, table, slots)
        return put_rows(ONE_DEVICE, table, slots, rows + updates)

    def call():
        nonlocal table
        table = add_rows(table, updates, slots)
        return table

    return Case(call, 3 * updates.nbytes)  # rows are read and written, updates read


def draw_keys(config: BenchConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns queries [texts, seq, heads, 2, half] and keys [heads, 2, keys, half]."""
    memory = config.model.memory
    heads, half = (memory.num_heads, 2), memory.key_dim // 2
    rng = np.random.default_rng(0)
    shape = (config.texts, config.seq_len, *heads, half)
    query = rng.standard_normal(shape, np.float32)
    return query, rng.standard_normal((*heads, memory.num_keys, half), np.float32)


def ranking_case(config: BenchConfig) -> Case:
    """Returns the case that finds the best slots of each token."""
    arrays = map(jnp.asarray, draw_keys(config))
    top_k = config.model.memory.top_k
    return _case(product_key_top_k, *arrays, top_k, amount=config.tokens)
