"""The loss of a model on held-out rows."""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from smf_jax import multihost
from smf_jax.data.batches import Batch
from smf_jax.model.loss import sum_losses
from smf_jax.model.transformer import Transformer


def mean_loss(model: Transformer, rows: Sequence[Batch], batch_size: int) -> float:
    """Returns the weighted mean loss of all targets in nats, the log of perplexity.

    The single rows, all of one width, are computed in batches of `batch_size`.
    """
    graph, params = nnx.split(model)
    loss = weight = 0.0
    for start in range(0, len(rows), batch_size):
        multihost.busy(f"loss of rows from {start} on")
        part = rows[start : start + batch_size]
        # The last batch is padded, so that one program serves all.
        padding = [(0, batch_size - len(part)), (0, 0)]
        batch = jax.tree.map(
            lambda *leaves, padding=padding: np.pad(np.stack(leaves), padding), *part
        )
        loss += float(_summed_loss(graph, params, model.layout.shard_batch(batch)))
        weight += float(batch.weights.sum())
    return loss / weight


@functools.partial(jax.jit, static_argnames="graph")
def _summed_loss(graph, params, batch):
    model = nnx.merge(graph, params)
    hidden, _ = model.hidden(batch.tokens, batch.positions, batch.segments)
    return sum_losses(model, hidden, batch.targets, batch.weights)
