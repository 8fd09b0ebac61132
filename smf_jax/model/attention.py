"""Causal grouped-query attention with rotary positions and a cache for decoding."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from smf_jax.config import ModelConfig, RopeScalingConfig
from smf_jax.model.linear import linear, rms_norm
from smf_jax.model.products import einsum, rounded_einsum
from smf_jax.sharding import MeshLayout

MASKED = -1e30  # not infinite: a token that sees none has no NaN


class KVCache(NamedTuple):
    """Keys and values of one layer for the tokens so far.

    Positions from `length` on are empty: the caller masks them.
    """

    keys: Float[Array, "batch kv_heads max_len head_dim"]
    values: Float[Array, "batch kv_heads max_len head_dim"]
    length: Int[Array, ""]


class Rotation(NamedTuple):
    """The angles by which the pairs of a head's dimensions are rotated, by token."""

    cos: Float[Array, "batch seq pairs"]
    sin: Float[Array, "batch seq pairs"]


class QueryTokens(NamedTuple):
    """The tokens that attend, if not all do."""

    x: Float[Array, "batch some dim"]
    rotation: Rotation
    mask: Bool[Array, "batch some kv_len"]


def rope_frequencies(
    head_dim: int, theta: float, scaling: RopeScalingConfig | None
) -> np.ndarray:
    """Returns radians per position for each pair of a head's dimensions.

    Source: Su et al. 2021, arXiv:2104.09864; of scalings, see `RopeScalingConfig`.
    """
    frequencies = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is not None:
        keep = _kept(scaling, frequencies, theta)
        frequencies = frequencies * (keep + (1 - keep) / scaling.factor)
    return frequencies.astype(np.float32)


def _kept(
    scaling: RopeScalingConfig, frequencies: np.ndarray, theta: float
) -> np.ndarray | float:
    """Returns how much of each frequency is not scaled, from 0 to 1."""
    if scaling.type == "linear":
        return 0.0
    original = float(scaling.original_max_position)
    if scaling.type == "llama3":
        turns = original * frequencies / (2 * np.pi)
        span = scaling.high_freq_factor - scaling.low_freq_factor
        return np.clip((turns - scaling.low_freq_factor) / span, 0, 1)
    # The paper's blend is linear in turns. That of its authors' code, with which models
    # were trained, is linear in the number of the pair.
    pairs, head_dim = np.arange(len(frequencies)), 2 * len(frequencies)
    turns = np.array([scaling.beta_fast, scaling.beta_slow])
    first, last = head_dim * np.log(original / (2 * np.pi * turns)) / np.log(theta) / 2
    if scaling.truncate:
        first, last = np.floor(first), np.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    span = last - first or 0.001  # a step
    return 1 - np.clip((pairs - first) / span, 0, 1)


def make_rotation(
    positions: Int[Array, "batch seq"], config: ModelConfig, length: int
) -> Rotation:
    """Returns the rotation of tokens at positions below `length`, for all layers.

    What is rotated is multiplied by the amplitude of the scaling, too. At any other
    position it is NaN.
    """
    theta, scaling = config.rope.theta, config.rope.scaling
    frequencies = rope_frequencies(config.head_width, theta, scaling)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies
    amplitude = 1.0 if scaling is None else scaling.amplitude
    # Looked up: the compiler would compute them anew for each head of each layer. A
    # negative index would count from the end.
    index = jnp.where(positions < 0, length, positions)
    tables = (
        jnp.asarray(amplitude * of(angles), jnp.float32) for of in (np.cos, np.sin)
    )
    return Rotation(
        *(table.at[index].get(mode="fill", fill_value=jnp.nan) for table in tables)
    )


def rotate(
    x: Float[Array, "batch seq heads head_dim"], rotation: Rotation
) -> Float[Array, "batch seq heads head_dim"]:
    """Rotates dimensions i and i + head_dim / 2 of each head."""
    cos, sin = (part[:, :, None] for part in rotation)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention from each token to those that the mask allows."""

    def __init__(
        self, config: ModelConfig, layer: int, layout: MeshLayout, *, rngs: nnx.Rngs
    ):
        make = functools.partial(linear, layout=layout, rngs=rngs)
        dtype = layout.compute.activations
        dim, width = config.dim, config.head_width
        heads, kv_heads = config.num_heads * width, config.num_kv_heads * width
        self.query = make(dim, heads, use_bias=config.qkv_bias)
        self.key = make(dim, kv_heads, use_bias=config.qkv_bias)
        self.value = make(dim, kv_heads, use_bias=config.qkv_bias)
        self.out = make(heads, dim)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.query_norm = rms_norm(width, config, dtype, rngs)
            self.key_norm = rms_norm(width, config, dtype, rngs)
        self.head_dim = width
        self.einsum = rounded_einsum if layout.rounds_factors else einsum
        self.rotates = layer not in config.rope.skip_layers

    def __call__(
        self,
        x: Float[Array, "batch seq dim"],
        rotation: Rotation,
        mask: Bool[Array, "batch 1 seq kv_len"],
        cache: KVCache | None = None,
        queries: QueryTokens | None = None,
    ) -> tuple[Float[Array, "batch some dim"], KVCache | None]:
        """Returns the output for `queries`, and the cache with the tokens of `x` added.

        By default all tokens are queries.
        """
        queries = QueryTokens(x, rotation, mask[:, 0]) if queries is None else queries
        query, key, value = (
            layer(x).astype(x.dtype).reshape(*x.shape[:2], -1, self.head_dim)
            for layer, x in ((self.query, queries.x), (self.key, x), (self.value, x))
        )
        if self.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.rotates:
            query, key = rotate(query, queries.rotation), rotate(key, rotation)
        query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
        if cache is not None:
            cache = _extend(cache, key, value)
            key, value = cache.keys, cache.values
        out = _attend(query, key, value, queries.mask, self.einsum).swapaxes(1, 2)
        out = out.reshape(*queries.x.shape[:2], -1)
        return self.out(out.astype(x.dtype)), cache


def _extend(cache: KVCache, key: Array, value: Array) -> KVCache:
    start = (0, 0, cache.length, 0)
    keys, values = (
        jax.lax.dynamic_update_slice(old, new.astype(old.dtype), start)
        for old, new in ((cache.keys, key), (cache.values, value))
    )
    return KVCache(keys, values, cache.length + key.shape[2])


def _attend(
    query: Float[Array, "batch heads some head_dim"],
    key: Float[Array, "batch kv_heads kv_len head_dim"],
    value: Float[Array, "batch kv_heads kv_len head_dim"],
    mask: Bool[Array, "batch some kv_len"],
    einsum: Callable[[str, Array, Array], Array],
) -> Float[Array, "batch heads some head_dim"]:
    """Returns the mean of the values that each query sees, weighted by softmax.

    The queries of a group of heads, which share keys, are one axis of the products.
    Sums are divided by the total weight at the end, where arrays are small.
    """
    batch, heads, some, head_dim = query.shape
    kv_heads, kv_len = key.shape[1:3]
    query = query.reshape(batch, kv_heads, -1, head_dim)
    scores = head_dim**-0.5 * einsum("bhqd,bhkd->bhqk", query, key)
    scores = scores.reshape(batch, kv_heads, -1, some, kv_len)
    scores = jnp.where(mask[:, None, None], scores, MASKED)
    largest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    total = weights.sum(-1).reshape(batch, heads, some, 1)
    weights = weights.reshape(batch, kv_heads, -1, kv_len).astype(value.dtype)
    out = einsum("bhqk,bhkd->bhqd", weights, value)
    return out.reshape(batch, heads, some, head_dim) / total
