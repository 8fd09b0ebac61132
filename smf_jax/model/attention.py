"""Causal grouped-query attention with rotary positions and a cache for decoding."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from smf_jax.config import ModelConfig, RopeScalingConfig
from smf_jax.model.linear import linear, rms_norm


class KVCache(NamedTuple):
    """Keys and values of one layer for the tokens so far.

    Positions from `length` on are empty: the caller masks them.
    """

    keys: Float[Array, "batch max_len kv_heads head_dim"]
    values: Float[Array, "batch max_len kv_heads head_dim"]
    length: Int[Array, ""]


class QueryTokens(NamedTuple):
    """The tokens that attend, if not all do."""

    x: Float[Array, "batch some dim"]
    positions: Int[Array, "batch some"]
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


def rotate(
    x: Float[Array, "batch seq heads head_dim"],
    positions: Int[Array, "batch seq"],
    frequencies: np.ndarray,
    amplitude: float = 1.0,
) -> Float[Array, "batch seq heads head_dim"]:
    """Rotates dimensions i and i + head_dim / 2 of each head by the position.

    The result is multiplied by `amplitude`.
    """
    angles = (positions[..., None] * jnp.asarray(frequencies)[None, None])[:, :, None]
    cos, sin = amplitude * jnp.cos(angles), amplitude * jnp.sin(angles)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention from each token to those that the mask allows."""

    def __init__(
        self, config: ModelConfig, layer: int, dtype: DTypeLike, *, rngs: nnx.Rngs
    ):
        make = functools.partial(linear, dtype=dtype, rngs=rngs)
        dim, width, rope = config.dim, config.head_width, config.rope
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
        self.rope = None if layer in rope.skip_layers else rope

    def __call__(
        self,
        x: Float[Array, "batch seq dim"],
        positions: Int[Array, "batch seq"],
        mask: Bool[Array, "batch 1 seq kv_len"],
        cache: KVCache | None = None,
        queries: QueryTokens | None = None,
    ) -> tuple[Float[Array, "batch some dim"], KVCache | None]:
        """Returns the output for `queries`, and the cache with the tokens of `x` added.

        By default all tokens are queries.
        """
        batch, seq, _ = x.shape
        queries = QueryTokens(x, positions, mask[:, 0]) if queries is None else queries
        query, key, value = (
            layer(x).astype(x.dtype).reshape(batch, x.shape[1], -1, self.head_dim)
            for layer, x in ((self.query, queries.x), (self.key, x), (self.value, x))
        )
        if self.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.rope is not None:
            theta, scaling = self.rope.theta, self.rope.scaling
            frequencies = rope_frequencies(self.head_dim, theta, scaling)
            amplitude = 1.0 if scaling is None else scaling.amplitude
            query = rotate(query, queries.positions, frequencies, amplitude)
            key = rotate(key, positions, frequencies, amplitude)
        if cache is not None:
            start = (0, cache.length, 0, 0)
            key = jax.lax.dynamic_update_slice(cache.keys, key, start)
            value = jax.lax.dynamic_update_slice(cache.values, value, start)
            cache = KVCache(key, value, cache.length + seq)
        out = jax.nn.dot_product_attention(
            query, key, value, mask=queries.mask[:, None]
        )
        return self.out(out.reshape(*queries.x.shape[:2], -1)), cache
