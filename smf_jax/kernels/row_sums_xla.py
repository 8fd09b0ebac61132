"""Row sums and their gradients by XLA.

A token reads tens of rows, so the unsummed rows of a batch are far larger than their
sums, and are never materialized. Sums loop over reads, some at a time, for all tokens;
gradients loop over chunks of tokens that stay in the cache.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from smf_jax.kernels.chunks import tokens_in_chunks

READS_PER_PASS = 16  # added in one pass over the sums, which are then written once
GPU_TOKENS_PER_CHUNK = 1024  # of the table's gradient, which adds as it multiplies
TPU_TOKENS_PER_CHUNK = 64  # 64 x 16 rows of 1,024 floats are 4 MiB
TOKENS_PER_CHUNK = 16  # 16 x 32 rows of 128 floats are 256 KiB: about one core's cache


def weighted_rows(
    values: Float[Array, "num_slots value_dim"],
    slots: Int[Array, "*batch reads"],
    weights: Float[Array, "*batch reads"],
    platform: str,
) -> Float[Array, "*batch value_dim"]:
    """Returns what `row_sums.weighted_rows` does."""
    *batch, reads = slots.shape
    sum_reads = functools.partial(_sum_reads, values)
    slots, weights = slots.reshape(-1, reads), weights.reshape(-1, reads)
    if platform == "tpu":  # whose compiler materializes the rows added in one pass
        sums = _map_tokens(sum_reads, TPU_TOKENS_PER_CHUNK, slots, weights)
    else:
        sums = sum_reads(slots, weights)
    return sums.astype(values.dtype).reshape(*batch, values.shape[1])


def _sum_reads(values, slots, weights):
    reads = slots.shape[1]
    in_passes = reads - reads % READS_PER_PASS

    def add(sums, some):
        # One after another, so that the compiler reads, weighs and adds in one loop.
        for slot, weight in zip(*some, strict=True):
            row = values.at[slot].get(mode="promise_in_bounds")
            sums = sums + weight.astype(jnp.float32)[:, None] * row
        return sums, None

    sums = jnp.zeros((len(slots), values.shape[1]), jnp.float32)
    slots, weights = slots.T, weights.T
    passes = [
        leaf[:in_passes].reshape(-1, READS_PER_PASS, leaf.shape[1])
        for leaf in (slots, weights)
    ]
    sums, _ = jax.lax.scan(add, sums, passes)
    return add(sums, (slots[in_passes:], weights[in_passes:]))[0]


def weight_gradient(
    values: Float[Array, "num_slots value_dim"],
    slots: Int[Array, "*batch reads"],
    cotangent: Float[Array, "*batch value_dim"],
    platform: str,
) -> Float[Array, "*batch reads"]:
    """Returns the float32 gradient of `weights`, given that of the sums."""
    tokens = slots.reshape(-1, slots.shape[-1])
    cotangent = cotangent.reshape(len(tokens), -1)
    if platform == "gpu":
        gradient = _multiply(values, tokens, cotangent)
    else:
        multiply = functools.partial(_matrix_multiply, values)
        gradient = _map_tokens(multiply, TOKENS_PER_CHUNK, tokens, cotangent)
    return gradient.reshape(slots.shape)


def _multiply(values, slots, cotangent):
    # One fused loop; a matrix product would materialize the rows.
    rows = values.at[slots].get(mode="promise_in_bounds").astype(jnp.float32)
    return (rows * cotangent[:, None].astype(jnp.float32)).sum(-1)


def _matrix_multiply(values, slots, cotangent):
    rows = values.at[slots].get(mode="promise_in_bounds")
    return jnp.einsum(
        "tv,trv->tr",
        cotangent,
        rows,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def table_gradient(
    cotangent: Float[Array, "*batch value_dim"],
    slots: Int[Array, "*batch reads"],
    weights: Float[Array, "*batch reads"],
    num_slots: int,
    platform: str,
) -> Float[Array, "num_slots value_dim"]:
    """Returns the dense float32 gradient of the table, given that of the sums.

    Slots of num_slots or more are padding.
    """
    size = GPU_TOKENS_PER_CHUNK if platform == "gpu" else TOKENS_PER_CHUNK

    def add_rows(gradient, chunk):
        slots, weights, cotangent = chunk
        # float32 sums: many tokens may read one slot, and bfloat16 loses small terms
        rows = weights[..., None].astype(jnp.float32) * cotangent[:, None]
        return gradient.at[slots].add(rows, mode="drop"), None

    chunks = tokens_in_chunks(size, slots, weights, cotangent)
    zeros = jnp.zeros((num_slots, cotangent.shape[-1]), jnp.float32)
    # The padding of the last chunk has weight 0, so slot 0 gains nothing.
    return jax.lax.scan(add_rows, zeros, chunks)[0]


def _map_tokens(function, size: int, *arrays: Array) -> Array:
    chunks = tokens_in_chunks(size, *arrays)
    out = jax.lax.map(lambda chunk: function(*chunk), chunks)
    return out.reshape(-1, out.shape[-1])[: len(arrays[0])]
