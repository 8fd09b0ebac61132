"""Calibrates a memory to a run's data, and measures what a memory adds."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from smf_jax.config import RetrofitConfig
from smf_jax.data.batches import Batch, Packed, packed_batches
from smf_jax.model.transformer import Transformer
from smf_jax.slots.sparse_table import SlotCounts
from smf_jax.slots.usage_stats import UsageStats, usage_stats
from smf_jax.train.calibrate import calibrate


def calibrate_memory(
    model: Transformer, packed: Packed, config: RetrofitConfig, console: Console
) -> tuple[SlotCounts, UsageStats]:
    """Calibrates a model's memory in place; returns what its documents then read.

    A document is a batch of the data.

    Raises:
      ConfigError: There are fewer tokens than keys.
    """
    rows = len(packed.facts) + len(packed.texts)
    documents = min(config.documents, max(rows // config.data.batch_size, 1))
    batches = packed_batches(packed, config.data, config.seed)
    reads = calibrate(model, list(itertools.islice(batches, documents)), config.seed)
    counts = np.bincount(np.concatenate([of.ravel() for of in reads]))
    stats = usage_stats(np.pad(counts, (0, config.memory.num_slots - len(counts))))
    console.print(
        f"calibrated: {documents} documents read {stats.read:.1%} of "
        f"{config.memory.num_slots:,} slots; {stats.top_percent:.1%} of the reads are "
        "of the top 1 %"
    )
    return SlotCounts.of(reads), stats


def memory_share(model: Transformer, rows: Sequence[Batch]) -> float | None:
    """Returns the length of what the lowest memory adds, over the feed-forward's.

    Both are averaged over tokens; None if there is no feed-forward beside it.
    """
    layer = model.blocks[model.config.memory.layers[0]]
    if layer.feed_forward is None:
        return None
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    graph, params = nnx.split(model)
    added, dense = _lengths(graph, params, model.layout.shard_batch(batch))
    return float(added) / float(dense)


@functools.partial(jax.jit, static_argnames="graph")
def _lengths(graph, params, batch: Batch):
    model = nnx.merge(graph, params)
    text = (batch.tokens, batch.positions, batch.segments)
    block, hidden, prefix = model.memory_input(*text)
    recalled, _ = block.memory(hidden, model.values[0][...], None, prefix.reads)
    if block.memory_scale is not None:
        recalled = block.memory_scale[...] * recalled
    counts = (batch.segments > 0) & (batch.positions > 0)

    def mean(x):
        lengths = jnp.linalg.norm(x.astype(jnp.float32), axis=-1)
        return model.layout.constrain((lengths * counts).sum())

    return mean(recalled), mean(block.feed_forward(hidden))
