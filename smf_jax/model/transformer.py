"""A Llama-style decoder whose feed-forwards may be, or stand beside, memory layers."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from smf_jax.config import ModelConfig
from smf_jax.kernels import sharded
from smf_jax.model.attention import Attention, KVCache, empty_cache
from smf_jax.model.memory import MemoryLayer, Reads, init_values, pool_of
from smf_jax.sharding import BATCH, ONE_DEVICE, Placement


class FeedForward(nnx.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202), without biases."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        dtype: DTypeLike = jnp.float32,
        *,
        rngs: nnx.Rngs,
    ):
        def linear(inputs, outputs):
            init = nnx.initializers.truncated_normal(inputs**-0.5)
            return nnx.Linear(
                inputs,
                outputs,
                use_bias=False,
                kernel_init=init,
                dtype=dtype,
                rngs=rngs,
            )

        self.gate = linear(dim, hidden_dim)
        self.up = linear(dim, hidden_dim)
        self.down = linear(hidden_dim, dim)

    def __call__(self, x: Float[Array, "batch seq dim"]) -> Float[Array, "..."]:
        """Returns the gated projection, of the shape of `x`."""
        return self.down(_gated(self.gate(x), self.up(x)))


@jax.checkpoint  # else three more arrays of this size are kept for the gradient
def _gated(gate: Array, up: Array) -> Array:
    return jax.nn.silu(gate) * up


class Block(nnx.Module):
    """Attention, then a feed-forward, a memory layer, or both side by side."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        placement: Placement = ONE_DEVICE,
        *,
        rngs: nnx.Rngs,
    ):
        memory = config.memory
        has_memory = memory is not None and layer in memory.layers
        adds = has_memory and memory.placement == "add"
        dim, dtype = config.dim, placement.compute.activations
        self.attention_norm = _norm(config, dtype, rngs)
        self.attention = Attention(config, layer, dtype, rngs=rngs)
        self.feed_forward_norm = _norm(config, dtype, rngs)
        self.feed_forward = (
            FeedForward(dim, config.hidden_dim, dtype, rngs=rngs)
            if adds or not has_memory
            else None
        )
        self.memory = (
            MemoryLayer(memory, dim, placement, rngs=rngs) if has_memory else None
        )
        # Starts at 0: a memory that was just added changes nothing.
        self.memory_scale = nnx.Param(jnp.zeros(())) if adds else None

    def __call__(self, x, positions, mask, values, tap, cache):
        """Returns the stream after this block, what was read (or None), the cache."""
        attended, cache = self.attention(self.attention_norm(x), positions, mask, cache)
        x = x + attended
        hidden, reads = self.feed_forward_norm(x), None
        out = 0 if self.feed_forward is None else self.feed_forward(hidden)
        if self.memory is not None:
            recalled, reads = self.memory(hidden, values, tap)
            if self.memory_scale is not None:
                # In float32: its gradient is a sum over all tokens.
                recalled = (self.memory_scale[...] * recalled).astype(x.dtype)
            out = out + recalled
        return x + out, reads, cache


def _norm(config: ModelConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(config.dim, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)


class Transformer(nnx.Module):
    """A causal language model; calling it gives logits and what its memories read."""

    def __init__(
        self,
        config: ModelConfig,
        placement: Placement = ONE_DEVICE,
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.placement = placement
        memory = config.memory
        init = nnx.initializers.normal(config.dim**-0.5)
        shape = (config.vocab_size, config.dim)
        self.embedding = nnx.Param(init(rngs.params(), shape))
        self.blocks = nnx.List(
            [
                Block(config, layer, placement, rngs=rngs)
                for layer in range(config.num_layers)
            ]
        )
        dtype = placement.compute.activations
        self.norm = _norm(config, dtype, rngs)
        self.head = (
            None
            if config.tie_embeddings
            else nnx.Linear(
                config.dim,
                config.vocab_size,
                use_bias=False,
                dtype=dtype,
                preferred_element_type=jnp.float32,
                rngs=rngs,
            )
        )
        pools = 0 if memory is None else memory.num_pools
        self.values = nnx.List([init_values(memory, rngs=rngs) for _ in range(pools)])

    def __call__(
        self,
        tokens: Int[Array, "batch seq"],
        positions: Int[Array, "batch seq"] | None = None,
        segments: Int[Array, "batch seq"] | None = None,
        taps: tuple[Float[Array, "batch seq value_dim"], ...] | None = None,
    ) -> tuple[Float[Array, "batch seq vocab"], tuple[Reads, ...]]:
        """Returns float32 logits and the `Reads` of each memory layer, lowest first.

        The arguments are those of `hidden`.
        """
        x, reads = self.hidden(tokens, positions, segments, taps)
        logits_of, params = self.head_parts()
        return logits_of(params, x), reads

    def hidden(
        self,
        tokens: Int[Array, "batch seq"],
        positions: Int[Array, "batch seq"] | None = None,
        segments: Int[Array, "batch seq"] | None = None,
        taps: tuple[Float[Array, "batch seq value_dim"], ...] | None = None,
    ) -> tuple[Float[Array, "batch seq dim"], tuple[Reads, ...]]:
        """Returns what logits are computed from, and what each memory layer read.

        Args:
          tokens: Token ids.
          positions: Place of each token in its text; by default its place in the row.
          segments: Which text of a packed row a token belongs to, 0 for padding; no
            token sees another text. By default a row is one text.
          taps: Added to the summed rows of each memory layer (`MemoryLayer`).
        """
        batch, seq = tokens.shape
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(seq), (batch, seq))
        mask = jnp.tril(jnp.ones((seq, seq), bool))[None, None]
        if segments is not None:
            mask = mask & (segments[:, None, :, None] == segments[:, None, None, :])
        mask = jnp.broadcast_to(mask, (batch, 1, seq, seq))
        x, reads, _ = self._run(tokens, positions, mask, taps, None)
        return x, reads

    def head_parts(self) -> tuple[Callable[[PyTree, Array], Array], PyTree]:
        """Returns `logits_of(params, hidden)` and its `params`.

        So that a gradient can be taken of these parameters and no others.
        """
        if self.head is None:
            return _tied_logits, self.embedding[...]
        graph, params = nnx.split(self.head)
        return lambda params, x: nnx.merge(graph, params)(x), params

    def decode(
        self,
        tokens: Int[Array, "batch seq"],
        positions: Int[Array, "batch seq"],
        is_token: Bool[Array, "batch max_len"],
        caches: list[KVCache],
    ) -> tuple[Float[Array, "batch vocab"], list[KVCache]]:
        """Returns the logits after the last token, and the caches with `tokens` added.

        `is_token` marks the places of the cache that hold a token once these are in;
        the others, padding on the left, are never attended to.
        """
        seq, max_len = tokens.shape[1], is_token.shape[1]
        place = caches[0].length + jnp.arange(seq)
        causal = jnp.arange(max_len)[None] <= place[:, None]
        mask = causal[None, None] & is_token[:, None, None]
        x, _, caches = self._run(tokens, positions, mask, None, caches)
        logits_of, params = self.head_parts()
        return logits_of(params, x[:, -1]), caches

    def empty_caches(self, batch: int, max_len: int) -> list[KVCache]:
        """Returns an empty cache for each layer."""
        dtype = self.placement.compute.activations
        return [empty_cache(self.config, batch, max_len, dtype) for _ in self.blocks]

    def _run(self, tokens, positions, mask, taps, caches):
        x = sharded.embed(self.placement, self.embedding[...], tokens)
        reads, kept = [], []
        for blocks in self._runs_of_blocks(caches is None):
            x = self.placement.constrain(x, BATCH)
            if len(blocks) > 1:
                x = self._scan(blocks, x, positions, mask)
                continue
            (block,) = blocks
            values = tap = None
            if block.memory is not None:
                values = self.values[pool_of(self.config.memory, len(reads))][...]
                tap = None if taps is None else taps[len(reads)]
            cache = None if caches is None else caches[len(kept)]
            x, read, cache = self._one(block)(x, positions, mask, values, tap, cache)
            kept.append(cache)
            if read is not None:
                reads.append(read)
        return self.norm(x), tuple(reads), kept

    def _runs_of_blocks(self, may_scan: bool) -> list[list[Block]]:
        """Returns the blocks in order, together those that one scan is to go over."""
        runs, last = [], None
        for block in self.blocks:
            graph = nnx.graphdef(block)
            alike = may_scan and block.memory is None and graph == last
            if alike and self.placement.compute.scan_layers:
                runs[-1].append(block)
            else:
                runs.append([block])
            last = graph
        return runs

    def _one(self, block: Block) -> Callable:
        if not self.placement.compute.remat:
            return block
        graph, params = nnx.split(block)
        again = jax.checkpoint(lambda params, *given: nnx.merge(graph, params)(*given))
        return functools.partial(again, params)

    def _scan(self, blocks: list[Block], x, positions, mask) -> Array:
        graph = nnx.graphdef(blocks[0])
        params = [nnx.as_pure(nnx.state(block)) for block in blocks]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)

        def step(x, params):
            block = self._one(nnx.merge(graph, params))
            x, _, _ = block(x, positions, mask, None, None, None)
            return self.placement.constrain(x, BATCH), None

        return jax.lax.scan(step, x, stacked)[0]


def _tied_logits(embedding: Array, x: Array) -> Array:
    table = embedding.astype(x.dtype)
    return jnp.einsum("...d,vd->...v", x, table, preferred_element_type=jnp.float32)
