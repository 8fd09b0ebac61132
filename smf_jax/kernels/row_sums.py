"""Weighted sums of table rows, and the gradient of a few rows without the rest.

A token reads tens of rows, so the un-summed rows of a batch are far larger than their
sums, and none of this makes an array of them. Sums go over reads, some at a time, for
all tokens at once; gradients over blocks of tokens that stay in the cache. A platform
is one that jax names: cpu, gpu or tpu.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from smf_jax.kernels.chunks import in_chunks

EXACT = jax.lax.Precision.HIGHEST  # float32 products of float32 on accelerators, too
READS_AT_ONCE = 16  # added in one pass over the sums, which are then written once
GPU_TOKENS_PER_BLOCK = 1024  # of the table's gradient, which adds as it multiplies
TPU_TOKENS_PER_BLOCK = 64  # 64 x 16 rows of 1,024 floats are 4 MiB
TOKENS_PER_BLOCK = 16  # 16 x 32 rows of 128 floats are 256 KiB: about one core's cache


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def weighted_rows(
    values: Float[Array, "num_slots value_dim"],
    slots: Int[Array, "*batch reads"],
    weights: Float[Array, "*batch reads"],
    platform: str,
) -> Float[Array, "*batch value_dim"]:
    """Returns the sum of `weights * values[slots]` over the reads of each token.

    The gradient with respect to `values` is dense, as pretraining needs it;
    `selected_rows_gradient` gives that of a few rows. Slots must exist. Sums are float32
    until they are whole, and of the type of `values` then.
    """
    batch = slots.shape[:-1]
    tokens = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (slots, weights))
    sums = (_sum_blocks if platform == "tpu" else _sum)(values, *tokens)
    return sums.astype(values.dtype).reshape(*batch, values.shape[1])


def _sum(values, slots, weights):
    """Returns float32 sums [tokens, value_dim], by loops over reads."""
    reads = slots.shape[1]
    whole = reads - reads % READS_AT_ONCE

    def add(sums, some):
        # One after another, so that the compiler reads, weighs and adds in one loop.
        for slot, weight in zip(*some, strict=True):
            row = values.at[slot].get(mode="promise_in_bounds")
            sums = sums + weight.astype(jnp.float32)[:, None] * row
        return sums, None

    sums = jnp.zeros((len(slots), values.shape[1]), jnp.float32)
    slots, weights = slots.T, weights.T
    blocks = [
        leaf[:whole].reshape(-1, READS_AT_ONCE, leaf.shape[1])
        for leaf in (slots, weights)
    ]
    sums, _ = jax.lax.scan(add, sums, blocks)
    return add(sums, (slots[whole:], weights[whole:]))[0]


def _sum_blocks(values, slots, weights):
    # Compiled for TPU, the rows that are added in one pass are all there at once.
    def of_block(slots, weights):
        return _sum(values, slots, weights)

    return _map_tokens(of_block, slots, weights, size=TPU_TOKENS_PER_BLOCK)


def _forward(*given):
    return weighted_rows(*given), given[:3]


def _backward(platform, residuals, cotangent):
    values, slots, weights = residuals
    gradient = table_gradient(cotangent, slots, weights, len(values), platform)
    return (
        gradient.astype(values.dtype),
        None,
        weight_gradient(values, slots, cotangent, platform).astype(weights.dtype),
    )


weighted_rows.defvjp(_forward, _backward)


def weight_gradient(
    values: Float[Array, "num_slots value_dim"],
    slots: Int[Array, "*batch reads"],
    cotangent: Float[Array, "*batch value_dim"],
    platform: str,
) -> Float[Array, "*batch reads"]:
    """Returns the float32 gradient that `weighted_rows` gives its weights."""
    tokens = slots.reshape(-1, slots.shape[-1])
    cotangent = cotangent.reshape(len(tokens), -1)
    if platform == "gpu":
        gradient = _multiply(values, tokens, cotangent)
    else:
        of_block = functools.partial(_multiply_block, values)
        gradient = _map_tokens(of_block, tokens, cotangent)
    return gradient.reshape(slots.shape)


def _multiply(values, slots, cotangent):
    # One loop for all, that reads, multiplies and adds, where a product of matrices
    # would be given the rows as an array.
    rows = values.at[slots].get(mode="promise_in_bounds").astype(jnp.float32)
    return (rows * cotangent[:, None].astype(jnp.float32)).sum(-1)


def _multiply_block(values, slots, cotangent):
    rows = values.at[slots].get(mode="promise_in_bounds")
    return jnp.einsum(
        "tv,trv->tr",
        cotangent,
        rows,
        precision=EXACT,
        preferred_element_type=jnp.float32,
    )


def table_gradient(
    cotangent: Float[Array, "*batch value_dim"],
    slots: Int[Array, "*batch reads"],
    weights: Float[Array, "*batch reads"],
    num_slots: int,
    platform: str,
) -> Float[Array, "num_slots value_dim"]:
    """Returns the dense float32 gradient that `weighted_rows` gives its table.

    A slot of num_slots or more stands for none.
    """
    size = GPU_TOKENS_PER_BLOCK if platform == "gpu" else TOKENS_PER_BLOCK

    def add_rows(gradient, block):
        slots, weights, cotangent = block
        # float32 sums: many tokens may read one slot, and bfloat16 loses small terms
        rows = weights[..., None].astype(jnp.float32) * cotangent[:, None]
        return gradient.at[slots].add(rows, mode="drop"), None

    blocks = [_blocks(leaf, size) for leaf in (slots, weights, cotangent)]
    start = jnp.zeros((num_slots, cotangent.shape[-1]), jnp.float32)
    # The tokens that fill the last block have weight 0, so slot 0 gains nothing.
    return jax.lax.scan(add_rows, start, blocks)[0]


def selected_rows_gradient(
    cotangent: Float[Array, "*batch value_dim"],
    slots: Int[Array, "*batch reads"],
    weights: Float[Array, "*batch reads"],
    chosen: Int[Array, " top_t"],
    num_slots: int,
) -> Float[Array, "top_t value_dim"]:
    """Returns the rows `chosen` of the gradient that `weighted_rows` gives its table.

    No array of the table's shape is made: the weight of each chosen row in each token
    is a small matrix, and the gradient is its product with `cotangent`.

    Args:
      cotangent: Gradient of the loss with respect to the summed rows.
      slots: What the forward pass read.
      weights: With which weights.
      chosen: Different slots; an id of num_slots or more stands for none and gets 0.
      num_slots: Rows of the table.
    """
    top_t = len(chosen)
    place = jnp.full(num_slots, top_t, jnp.int32)
    place = place.at[chosen].set(jnp.arange(top_t, dtype=jnp.int32), mode="drop")

    def add_block(gradient, block):
        slots, weights, cotangent = block
        tokens = jnp.arange(len(slots))[:, None]
        mix = jnp.zeros((len(slots), top_t), jnp.float32)
        columns = place.at[slots].get(mode="promise_in_bounds")
        mix = mix.at[tokens, columns].add(weights.astype(jnp.float32), mode="drop")
        rows = jnp.matmul(mix.T, cotangent.astype(jnp.float32), precision=EXACT)
        return gradient + rows, None

    # Larger blocks than the gather's: the product of a block is a matrix product.
    blocks = [_blocks(leaf, size=1024) for leaf in (slots, weights, cotangent)]
    start = jnp.zeros((top_t, cotangent.shape[-1]), jnp.float32)
    return jax.lax.scan(add_block, start, blocks)[0]


def _blocks(array: Array, size: int = TOKENS_PER_BLOCK) -> Array:
    """Cuts the flattened tokens of [*batch, width] into blocks, the last with zeros."""
    return in_chunks(array.reshape(-1, array.shape[-1]), size)


def _map_tokens(function, *arrays: Array, size: int = TOKENS_PER_BLOCK) -> Array:
    blocks = [_blocks(leaf, size) for leaf in arrays]
    out = jax.lax.map(lambda block: function(*block), blocks)
    return out.reshape(-1, out.shape[-1])[: len(arrays[0])]
