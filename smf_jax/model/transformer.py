"""A Llama-style decoder whose feed-forwards may be, or stand beside, memory layers."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from smf_jax.config import ModelConfig
from smf_jax.kernels import sharded
from smf_jax.model.attention import Asking, KVCache, empty_cache
from smf_jax.model.block import Block, norm
from smf_jax.model.memory import Reads, init_values, table_of
from smf_jax.sharding import BATCH, ONE_DEVICE, MeshLayout


class Prefix(NamedTuple):
    """What a model makes of texts before rows of its lowest memory are summed."""

    stream: Float[Array, "batch seq dim"]  # with the attention of that block added
    reads: Reads  # of that memory


class Transformer(nnx.Module):
    """A causal language model; calling it gives logits and what its memories read."""

    def __init__(
        self,
        config: ModelConfig,
        layout: MeshLayout = ONE_DEVICE,
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.layout = layout
        memory = config.memory
        init = nnx.initializers.normal(config.dim**-0.5)
        shape = (config.vocab_size, config.dim)
        self.embedding = nnx.Param(init(rngs.params(), shape))
        self.blocks = nnx.List(
            [
                Block(config, layer, layout, rngs=rngs)
                for layer in range(config.num_layers)
            ]
        )
        dtype = layout.compute.activations
        self.norm = norm(config, dtype, rngs)
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
        pools = 0 if memory is None else memory.num_tables
        self.values = nnx.List([init_values(memory, rngs=rngs) for _ in range(pools)])

    def __call__(
        self,
        tokens: Int[Array, "batch seq"],
        positions: Int[Array, "batch seq"] | None = None,
        segments: Int[Array, "batch seq"] | None = None,
        perturbations: tuple[Float[Array, "batch seq value_dim"], ...] | None = None,
    ) -> tuple[Float[Array, "batch seq vocab"], tuple[Reads, ...]]:
        """Returns float32 logits and the `Reads` of each memory layer, lowest first.

        The arguments are those of `hidden`.
        """
        x, reads = self.hidden(tokens, positions, segments, perturbations)
        logits_of, params = self.head_parts()
        return logits_of(params, x), reads

    def hidden(
        self,
        tokens: Int[Array, "batch seq"],
        positions: Int[Array, "batch seq"] | None = None,
        segments: Int[Array, "batch seq"] | None = None,
        perturbations: tuple[Float[Array, "batch seq value_dim"], ...] | None = None,
        prefix: Prefix | None = None,
        places: Int[Array, "batch some"] | None = None,
    ) -> tuple[Float[Array, "batch some dim"], tuple[Reads, ...]]:
        """Returns what logits are computed from, and what each memory layer read.

        Args:
          tokens: Token ids.
          positions: Place of each token in its text; by default its place in the row.
          segments: Which text of a packed row a token belongs to, 0 for padding; no
            token sees another text. By default a row is one text.
          perturbations: Added to the summed rows of each memory layer (`MemoryLayer`).
          prefix: What `self.prefix` returns of the same texts, if it is known.
          places: Those of each row that are asked for; by default all.
        """
        given = _positions_and_mask(tokens, positions, segments)
        x, reads, _ = self._run(tokens, *given, perturbations, None, prefix, places)
        return x, reads

    def prefix(
        self,
        tokens: Int[Array, "batch seq"],
        positions: Int[Array, "batch seq"] | None = None,
        segments: Int[Array, "batch seq"] | None = None,
    ) -> Prefix:
        """Returns what comes before the rows of the lowest memory are summed.

        It stays the same while nothing trains but rows, so that it need not be computed
        again for a text that is seen again. The arguments are those of `hidden`.
        """
        positions, mask = _positions_and_mask(tokens, positions, segments)
        below, lowest = self._below_memory()
        x = sharded.embed(self.layout, self.embedding[...], tokens)
        for blocks in below:
            x = self._scan(blocks, self.layout.constrain(x, BATCH), positions, mask)
        x, _ = lowest.attend(self.layout.constrain(x, BATCH), positions, mask, None)
        return Prefix(x, lowest.rank(x))

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
        last = jnp.full((len(tokens), 1), seq - 1)
        x, _, caches = self._run(
            tokens, positions, mask, None, caches, places=last if seq > 1 else None
        )
        logits_of, params = self.head_parts()
        return logits_of(params, x[:, 0]), caches

    def empty_caches(self, batch: int, max_len: int) -> list[KVCache]:
        """Returns an empty cache for each layer."""
        dtype = self.layout.compute.activations
        return [empty_cache(self.config, batch, max_len, dtype) for _ in self.blocks]

    def _run(
        self, tokens, positions, mask, perturbations, caches, prefix=None, places=None
    ):
        reads, kept = [], []
        runs = self._runs_of_blocks(caches is None)

        def of_memory():
            pool = table_of(self.config.memory, len(reads))
            perturbation = None if perturbations is None else perturbations[len(reads)]
            return self.values[pool][...], perturbation

        if prefix is None:
            x = sharded.embed(self.layout, self.embedding[...], tokens)
        else:
            below, lowest = self._below_memory()
            runs = runs[len(below) + 1 :]
            feed = self._again(lowest, Block.feed)
            x, read = feed(prefix.stream, *of_memory(), prefix.reads)
            reads.append(read)
        for blocks in runs:
            x = self.layout.constrain(x, BATCH)
            if len(blocks) > 1:
                x = self._scan(blocks, x, positions, mask)
                continue
            (block,) = blocks
            memory = (None, None) if block.memory is None else of_memory()
            cache = None if caches is None else caches[len(kept)]
            run = self._again(block, Block.__call__)
            asking = None
            # The reads of a memory count for all tokens.
            if block is self.blocks[-1] and block.memory is None and places is not None:
                asking, places = self._asking(places, x, positions, mask), None
            x, read, cache = run(x, positions, mask, *memory, cache, asking)
            kept.append(cache)
            if read is not None:
                reads.append(read)
        if places is not None:
            x = sharded.take_positions(self.layout, x, places)
        return self.norm(x), tuple(reads), kept

    def _asking(self, places, x, positions, mask) -> Asking:
        """Returns the tokens that the last block is asked for: others see it not."""
        x, positions, mask = (
            sharded.take_positions(self.layout, leaf, places)
            for leaf in (x, positions, mask[:, 0])
        )
        return Asking(x, positions, mask[:, None])

    def _runs_of_blocks(self, may_scan: bool) -> list[list[Block]]:
        """Returns the blocks in order, together those that one scan is to go over."""
        runs, last = [], None
        for block in self.blocks:
            graph = nnx.graphdef(block)
            alike = may_scan and block.memory is None and graph == last
            if alike and self.layout.compute.scan_layers:
                runs[-1].append(block)
            else:
                runs.append([block])
            last = graph
        return runs

    def _below_memory(self) -> tuple[list[list[Block]], Block]:
        """Returns the runs of blocks below the lowest memory, and its block."""
        runs = self._runs_of_blocks(True)
        lowest = next(n for n, run in enumerate(runs) if run[0].memory is not None)
        return runs[:lowest], runs[lowest][0]

    def _again(self, block: Block, method: Callable) -> Callable:
        """Returns a method of a block, of which remat keeps nothing but the inputs."""
        if not self.layout.compute.remat:
            return functools.partial(method, block)
        graph, params = nnx.split(block)
        again = jax.checkpoint(
            lambda params, *given: method(nnx.merge(graph, params), *given)
        )
        return functools.partial(again, params)

    def _scan(self, blocks: list[Block], x, positions, mask) -> Array:
        """Returns the stream after a run of blocks without memory."""
        if len(blocks) == 1:
            run = self._again(blocks[0], Block.__call__)
            return run(x, positions, mask, None, None, None)[0]
        graph = nnx.graphdef(blocks[0])
        params = [nnx.as_pure(nnx.state(block)) for block in blocks]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)

        def step(x, params):
            run = self._again(nnx.merge(graph, params), Block.__call__)
            x, _, _ = run(x, positions, mask, None, None, None)
            return self.layout.constrain(x, BATCH), None

        return jax.lax.scan(step, x, stacked)[0]


def _positions_and_mask(tokens, positions, segments):
    batch, seq = tokens.shape
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(seq), (batch, seq))
    mask = jnp.tril(jnp.ones((seq, seq), bool))[None, None]
    if segments is not None:
        mask = mask & (segments[:, None, :, None] == segments[:, None, None, :])
    return positions, jnp.broadcast_to(mask, (batch, 1, seq, seq))


def _tied_logits(embedding: Array, x: Array) -> Array:
    table = embedding.astype(x.dtype)
    return jnp.einsum("...d,vd->...v", x, table, preferred_element_type=jnp.float32)
