"""A transformer block: attention, then a feed-forward, a memory layer, or both."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smf_jax.config import ModelConfig
from smf_jax.model.attention import Attention
from smf_jax.model.calibrated import CalibratedMemory
from smf_jax.model.linear import linear, rms_norm
from smf_jax.model.memory import MemoryLayer, Reads
from smf_jax.sharding import MeshLayout


class FeedForward(nnx.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202), without biases."""

    def __init__(
        self, dim: int, hidden_dim: int, layout: MeshLayout, *, rngs: nnx.Rngs
    ):
        make = functools.partial(linear, layout=layout, rngs=rngs)
        self.gate = make(dim, hidden_dim)
        self.up = make(dim, hidden_dim)
        self.down = make(hidden_dim, dim)

    def __call__(self, x: Float[Array, "batch seq dim"]) -> Float[Array, "..."]:
        """Returns the gated projection, of the shape of `x`."""
        return self.down(_gated(self.gate(x), self.up(x)))


@jax.checkpoint  # otherwise three more arrays of this size are kept for the gradient
def _gated(gate: Array, up: Array) -> Array:
    return jax.nn.silu(gate) * up


class Block(nnx.Module):
    """Attention, then a feed-forward, a memory layer, or both side by side."""

    def __init__(
        self, config: ModelConfig, layer: int, layout: MeshLayout, *, rngs: nnx.Rngs
    ):
        memory = config.memory
        has_memory = memory is not None and layer in memory.layers
        adds_memory = has_memory and memory.placement == "add"
        dim, dtype = config.dim, layout.compute.activations
        self.attention_norm = rms_norm(dim, config, dtype, rngs)
        self.attention = Attention(config, layer, layout, rngs=rngs)
        self.feed_forward_norm = rms_norm(dim, config, dtype, rngs)
        self.feed_forward = (
            FeedForward(dim, config.hidden_dim, layout, rngs=rngs)
            if adds_memory or not has_memory
            else None
        )
        is_calibrated = has_memory and memory.calibrated is not None
        layer = CalibratedMemory if is_calibrated else MemoryLayer
        self.memory = layer(memory, dim, layout, rngs=rngs) if has_memory else None
        # Starts at 0, so that an added memory changes nothing. A calibrated one has
        # empty rows instead.
        has_scale = adds_memory and not is_calibrated
        self.memory_scale = nnx.Param(jnp.zeros(())) if has_scale else None

    def __call__(self, x, rotation, mask, values, perturbation, cache, queries=None):
        """Returns the residual stream after this block, its reads, and the cache.

        The stream is that of all tokens, or of `queries` alone.
        """
        x, cache = self.attend(x, rotation, mask, cache, queries)
        x, reads = self.feed(x, values, perturbation)
        return x, reads, cache

    def attend(self, x, rotation, mask, cache, queries=None):
        """Returns the stream with attention added, and the cache."""
        args = (self.attention_norm(x), rotation, mask, cache)
        if queries is None:
            attended, cache = self.attention(*args)
            return x + attended, cache
        normed = queries._replace(x=self.attention_norm(queries.x))
        attended, cache = self.attention(*args, normed)
        return queries.x + attended, cache

    def rank(self, x: Float[Array, "batch seq dim"]) -> Reads:
        """Returns what the memory layer reads, given the stream after attention."""
        return self.memory.rank(self.feed_forward_norm(x))

    def feed(self, x, values, perturbation, reads=None):
        """Returns the stream after this block, and its reads, given that of `attend`.

        `reads` are those of `rank`, if known.
        """
        hidden = self.feed_forward_norm(x)
        out = 0 if self.feed_forward is None else self.feed_forward(hidden)
        if self.memory is not None:
            recalled, reads = self.memory(hidden, values, perturbation, reads)
            if self.memory_scale is not None:
                # In float32: its gradient is a sum over all tokens.
                recalled = (self.memory_scale[...] * recalled).astype(x.dtype)
            out = out + recalled
        return x + out, reads
