"""A Llama-style decoder with memory layers in place of feed-forwards or beside them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from smf_jax.config import ModelConfig
from smf_jax.kernels.sharded import embed, take_positions
from smf_jax.model.attention import KVCache, QueryTokens, make_rotation
from smf_jax.model.block import Block
from smf_jax.model.linear import rms_norm
from smf_jax.model.memory import Reads, init_values, table_of
from smf_jax.model.products import einsum, product, rounded_einsum, rounded_product
from smf_jax.sharding import BATCH, ONE_DEVICE, MeshLayout

Perturbations = tuple[Float[Array, "batch seq value_dim"], ...]

FEW_TOKENS = 64  # of a product with the embedding, beside which the copy is expensive


class Prefix(NamedTuple):
    """What a model computes before it sums rows in its lowest memory layer."""

    stream: Float[Array, "batch seq dim"]  # after the attention of that layer's block
    reads: Reads  # of that layer


class Transformer(nnx.Module):
    """A causal language model; calling it returns logits and reads of memory layers."""

    def __init__(
        self, config: ModelConfig, layout: MeshLayout = ONE_DEVICE, *, rngs: nnx.Rngs
    ):
        self.config = config
        self.layout = layout
        memory, dim, dtype = config.memory, config.dim, layout.compute.activations
        init = nnx.initializers.normal(dim**-0.5)
        self.embedding = nnx.Param(init(rngs.params(), (config.vocab_size, dim)))
        layers = range(config.num_layers)
        self.blocks = nnx.List([Block(config, n, layout, rngs=rngs) for n in layers])
        self.norm = rms_norm(dim, config, dtype, rngs)
        make_head = functools.partial(
            nnx.Linear,
            use_bias=False,
            dtype=dtype,
            dot_general=rounded_product if layout.rounds_factors else product,
            preferred_element_type=jnp.float32,
        )
        tied = config.tie_embeddings
        self.head = None if tied else make_head(dim, config.vocab_size, rngs=rngs)
        tables = 0 if memory is None else memory.num_tables
        self.values = nnx.List([init_values(memory, rngs=rngs) for _ in range(tables)])

    def __call__(
        self,
        tokens: Int[Array, "batch seq"],
        positions: Int[Array, "batch seq"] | None = None,
        segments: Int[Array, "batch seq"] | None = None,
        perturbations: Perturbations | None = None,
    ) -> tuple[Float[Array, "batch seq vocab"], tuple[Reads, ...]]:
        """Returns float32 logits and the reads of each memory layer (see `hidden`)."""
        x, reads = self.hidden(tokens, positions, segments, perturbations)
        logits_of, params = self.head_parts()
        return logits_of(params, x), reads

    def hidden(
        self,
        tokens: Int[Array, "batch seq"],
        positions: Int[Array, "batch seq"] | None = None,
        segments: Int[Array, "batch seq"] | None = None,
        perturbations: Perturbations | None = None,
        prefix: Prefix | None = None,
        output_positions: Int[Array, "batch some"] | None = None,
    ) -> tuple[Float[Array, "batch some dim"], tuple[Reads, ...]]:
        """Returns the final hidden states, and the `Reads` of each memory layer.

        Positions count from the start of a text, by default of a row, and are below the
        width of a row; elsewhere the result is NaN. Segments number the texts of a
        packed row, 0 is padding; no token sees another text. By default a row is one
        text. Perturbations are added to the summed rows of each memory layer. `prefix`
        is the result of `self.prefix` for the same texts, if known, and
        `output_positions` are the positions in each row to return, by default all.
        """
        args = _positions_and_mask(tokens, positions, segments)
        x, reads, _ = self._run(
            tokens, *args, perturbations, None, prefix, output_positions
        )
        return x, reads

    def prefix(
        self,
        tokens: Int[Array, "batch seq"],
        positions: Int[Array, "batch seq"] | None = None,
        segments: Int[Array, "batch seq"] | None = None,
    ) -> Prefix:
        """Returns what comes before the lowest memory layer sums rows.

        While only tables are trained it stays the same, and can be reused. The
        arguments are those of `hidden`.
        """
        positions, mask = _positions_and_mask(tokens, positions, segments)
        rotation = make_rotation(positions, self.config, mask.shape[-1])
        below, lowest = self._below_memory()
        x = embed(self.layout, self.embedding[...], tokens)
        for blocks in below:
            x = self._scan(blocks, self.layout.constrain(x, BATCH), rotation, mask)
        x, _ = lowest.attend(self.layout.constrain(x, BATCH), rotation, mask, None)
        return Prefix(x, lowest.rank(x))

    def memory_input(
        self,
        tokens: Int[Array, "batch seq"],
        positions: Int[Array, "batch seq"],
        segments: Int[Array, "batch seq"],
    ) -> tuple[Block, Float[Array, "batch seq dim"], Prefix]:
        """Returns the lowest block with a memory, its memory's input, and the prefix.

        The arguments are those of `hidden`.
        """
        prefix = self.prefix(tokens, positions, segments)
        block = self.blocks[self.config.memory.layers[0]]
        return block, block.feed_forward_norm(prefix.stream), prefix

    def head_parts(self) -> tuple[Callable[[PyTree, Array], Array], PyTree]:
        """Returns `logits_of(params, hidden)` and its `params`.

        They are apart so that the gradient of the head can be taken alone.
        """
        if self.head is None:
            logits_of = _rounded_logits if self.layout.rounds_factors else _logits
            return logits_of, self.embedding[...]
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

        `is_token` marks the positions of the updated cache that hold tokens; all others
        are padding, which no token sees.
        """
        seq, max_len = tokens.shape[1], is_token.shape[1]
        row_positions = caches[0].length + jnp.arange(seq)
        causal = jnp.arange(max_len)[None] <= row_positions[:, None]
        mask = causal[None, None] & is_token[:, None, None]
        last = jnp.full((len(tokens), 1), seq - 1) if seq > 1 else None
        x, _, caches = self._run(tokens, positions, mask, None, caches, None, last)
        logits_of, params = self.head_parts()
        return logits_of(params, x[:, 0]), caches

    def empty_caches(self, batch: int, max_len: int) -> list[KVCache]:
        """Returns an empty cache of `max_len` tokens per sequence for each layer."""
        shape = (batch, self.config.num_kv_heads, max_len, self.config.head_width)
        rounded = self.layout.rounds_factors  # as products would do it
        dtype = jnp.bfloat16 if rounded else self.layout.compute.activations
        empty = jnp.zeros(shape, dtype)
        return [KVCache(empty, empty, jnp.zeros((), jnp.int32)) for _ in self.blocks]

    def _run(
        self, tokens, positions, mask, perturbations, caches, prefix, output_positions
    ):
        rotation = make_rotation(positions, self.config, mask.shape[-1])
        reads, new_caches = [], []
        runs = self._runs_of_blocks(may_scan=caches is None)

        def memory_inputs():
            table = table_of(self.config.memory, len(reads))
            perturbation = None if perturbations is None else perturbations[len(reads)]
            return self.values[table][...], perturbation

        def take(leaf):
            return take_positions(self.layout, leaf, output_positions)

        if prefix is None:
            x = embed(self.layout, self.embedding[...], tokens)
        else:
            below, lowest = self._below_memory()
            runs = runs[len(below) + 1 :]
            feed = self._remat(lowest, Block.feed)
            x, read = feed(prefix.stream, *memory_inputs(), prefix.reads)
            reads.append(read)
        for blocks in runs:
            x = self.layout.constrain(x, BATCH)
            if len(blocks) > 1:
                x = self._scan(blocks, x, rotation, mask)
                continue
            (block,) = blocks
            memory = (None, None) if block.memory is None else memory_inputs()
            cache = None if caches is None else caches[len(new_caches)]
            queries = None
            # A memory layer has to count the reads of all tokens.
            is_last = block is self.blocks[-1] and block.memory is None
            if is_last and output_positions is not None:
                queries = QueryTokens(x, rotation, mask[:, 0])
                queries = jax.tree.map(take, queries)
                output_positions = None
            run = self._remat(block, Block.__call__)
            x, read, cache = run(x, rotation, mask, *memory, cache, queries)
            new_caches.append(cache)
            if read is not None:
                reads.append(read)
        if output_positions is not None:
            x = take(x)
        return self.norm(x), tuple(reads), new_caches

    def _runs_of_blocks(self, may_scan: bool) -> list[list[Block]]:
        """Returns the blocks in order, grouped by the scan that computes them."""
        runs, previous = [], None
        may_scan = may_scan and self.layout.compute.scan_layers
        for block in self.blocks:
            graph = nnx.graphdef(block)
            if may_scan and block.memory is None and graph == previous:
                runs[-1].append(block)
            else:
                runs.append([block])
            previous = graph
        return runs

    def _below_memory(self) -> tuple[list[list[Block]], Block]:
        """Returns the runs of blocks below the lowest memory layer, and its block."""
        runs = self._runs_of_blocks(may_scan=True)
        lowest = next(n for n, run in enumerate(runs) if run[0].memory is not None)
        return runs[:lowest], runs[lowest][0]

    def _remat(self, block: Block, method: Callable) -> Callable:
        if not self.layout.compute.remat:
            return functools.partial(method, block)
        graph, params = nnx.split(block)
        run = jax.checkpoint(
            lambda params, *args: method(nnx.merge(graph, params), *args)
        )
        return functools.partial(run, params)

    def _scan(self, blocks: list[Block], x, rotation, mask) -> Array:
        if len(blocks) == 1:
            run = self._remat(blocks[0], Block.__call__)
            return run(x, rotation, mask, None, None, None)[0]
        graph = nnx.graphdef(blocks[0])
        params = [nnx.as_pure(nnx.state(block)) for block in blocks]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)

        def step(x, params):
            run = self._remat(nnx.merge(graph, params), Block.__call__)
            x, _, _ = run(x, rotation, mask, None, None, None)
            return self.layout.constrain(x, BATCH), None

        return jax.lax.scan(step, x, stacked)[0]


def _positions_and_mask(tokens, positions, segments):
    batch, seq = tokens.shape
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(seq), (batch, seq))
    mask = jnp.tril(jnp.ones((seq, seq), bool))[None, None]
    if segments is not None:
        positions = jnp.where(segments > 0, positions, 0)  # of padding: any that exists
        mask = mask & (segments[:, None, :, None] == segments[:, None, None, :])
    return positions, jnp.broadcast_to(mask, (batch, 1, seq, seq))


def _tied_logits(einsum, embedding: Array, x: Array) -> Array:
    flat = x.reshape(-1, x.shape[-1])
    table = embedding.astype(x.dtype)
    if len(flat) < FEW_TOKENS:
        # Compilers for CPUs copy the second factor into another order, so that the
        # table must be the first one. The barrier keeps it there.
        logits = jax.lax.optimization_barrier(einsum("vd,td->vt", table, flat)).T
    else:
        logits = einsum("td,vd->tv", flat, table)
    return logits.reshape(*x.shape[:-1], len(embedding))


_logits = functools.partial(_tied_logits, einsum)
_rounded_logits = functools.partial(_tied_logits, rounded_einsum)
