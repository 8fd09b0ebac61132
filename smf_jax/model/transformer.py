"""A Llama-style decoder whose feed-forwards may be, or stand beside, memory layers."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from smf_jax.config import MemoryConfig, ModelConfig, require
from smf_jax.model.attention import Attention, KVCache, empty_cache
from smf_jax.model.memory import MemoryLayer, Reads, init_values, pool_of
from smf_jax.names import leaf_name, named


class FeedForward(nnx.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202), without biases."""

    def __init__(self, dim: int, hidden_dim: int, *, rngs: nnx.Rngs):
        def linear(inputs, outputs):
            init = nnx.initializers.truncated_normal(inputs**-0.5)
            return nnx.Linear(
                inputs, outputs, use_bias=False, kernel_init=init, rngs=rngs
            )

        self.gate = linear(dim, hidden_dim)
        self.up = linear(dim, hidden_dim)
        self.down = linear(hidden_dim, dim)

    def __call__(self, x: Float[Array, "batch seq dim"]) -> Float[Array, "..."]:
        """Returns the gated projection, of the shape of `x`."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention, then a feed-forward, a memory layer, or both side by side."""

    def __init__(self, config: ModelConfig, layer: int, *, rngs: nnx.Rngs):
        memory = config.memory
        has_memory = memory is not None and layer in memory.layers
        adds = has_memory and memory.placement == "add"
        self.attention_norm = nnx.RMSNorm(
            config.dim, epsilon=config.norm_eps, rngs=rngs
        )
        self.attention = Attention(config, layer, rngs=rngs)
        self.feed_forward_norm = nnx.RMSNorm(
            config.dim, epsilon=config.norm_eps, rngs=rngs
        )
        self.feed_forward = (
            FeedForward(config.dim, config.hidden_dim, rngs=rngs)
            if adds or not has_memory
            else None
        )
        self.memory = MemoryLayer(memory, config.dim, rngs=rngs) if has_memory else None
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
            scale = 1 if self.memory_scale is None else self.memory_scale[...]
            out = out + scale * recalled
        return x + out, reads, cache


class Transformer(nnx.Module):
    """A causal language model; calling it gives logits and what its memories read."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        memory = config.memory
        init = nnx.initializers.normal(config.dim**-0.5)
        shape = (config.vocab_size, config.dim)
        self.embedding = nnx.Param(init(rngs.params(), shape))
        self.blocks = nnx.List(
            [Block(config, layer, rngs=rngs) for layer in range(config.num_layers)]
        )
        self.norm = nnx.RMSNorm(config.dim, epsilon=config.norm_eps, rngs=rngs)
        self.head = (
            None
            if config.tie_embeddings
            else nnx.Linear(config.dim, config.vocab_size, use_bias=False, rngs=rngs)
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
        return self._logits(x), reads

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
        return self._logits(x[:, -1:])[:, 0], caches

    def empty_caches(self, batch: int, max_len: int) -> list[KVCache]:
        """Returns an empty cache for each layer."""
        dtype = self.embedding.dtype  # that of the stream, so of keys and values
        return [empty_cache(self.config, batch, max_len, dtype) for _ in self.blocks]

    def _run(self, tokens, positions, mask, taps, caches):
        # An id outside the vocabulary must not read some other token's embedding, as a
        # negative one would: it counts from the end.
        ids = jnp.where(tokens < 0, self.config.vocab_size, tokens)
        x = self.embedding[...].at[ids].get(mode="fill", fill_value=jnp.nan)
        reads, kept = [], []
        for layer, block in enumerate(self.blocks):
            values = tap = None
            if block.memory is not None:
                values = self.values[pool_of(self.config.memory, len(reads))][...]
                tap = None if taps is None else taps[len(reads)]
            cache = None if caches is None else caches[layer]
            x, read, cache = block(x, positions, mask, values, tap, cache)
            kept.append(cache)
            if read is not None:
                reads.append(read)
        return self.norm(x), tuple(reads), kept

    def _logits(self, x):
        logits = x @ self.embedding[...].T if self.head is None else self.head(x)
        return logits.astype(jnp.float32)


def abstract_model(config: ModelConfig) -> Transformer:
    """Returns a model that has shapes and types instead of arrays."""
    return nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))


def assemble(abstract: Transformer, params: dict[str, Array]) -> Transformer:
    """Returns an abstract model with parameters, by name; others of them are left."""
    graph, shapes = nnx.split(abstract)
    return nnx.merge(
        graph,
        jax.tree.map_with_path(
            lambda path, _: params[leaf_name(path)], nnx.as_pure(shapes)
        ),
    )


def add_memory(model: Transformer, memory: MemoryConfig, seed: int) -> Transformer:
    """Returns a model with freshly made memory layers and the rest of another's.

    Beside a feed-forward they change nothing until they are trained. The parameters
    that the two share are the same arrays.

    Raises:
      ConfigError: It has memory layers already, or too few layers for these.
    """
    require(model.config.memory is None, "the model has memory layers already")
    config = dataclasses.replace(model.config, memory=memory)
    old = named(nnx.as_pure(nnx.state(model)))

    @jax.jit  # so that nothing is made that is thrown away
    def make() -> dict[str, Array]:
        fresh = Transformer(config, rngs=nnx.Rngs(seed))
        params = named(nnx.as_pure(nnx.state(fresh)))
        return {name: leaf for name, leaf in params.items() if name not in old}

    return assemble(abstract_model(config), old | make())
