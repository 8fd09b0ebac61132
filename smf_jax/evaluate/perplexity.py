"""The loss of a model on held-out rows."""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from smf_jax import multihost
from smf_jax.data.batches import Batch
from smf_jax.model.loss import sum_losses
from smf_jax.sharding import ONE_DEVICE, MeshLayout


def mean_loss(
    graph: nnx.GraphDef,
    params: tuple[PyTree, ...],
    rows: Sequence[Batch],
    batch_size: int,
    layout: MeshLayout = ONE_DEVICE,
) -> float:
    """Returns the weighted mean loss of all targets in nats, the log of perplexity.

    Args:
      graph: The model's structure.
      params: Its parameters, in the parts that `graph` was split into.
      rows: Single rows of one width.
      batch_size: Rows computed at once.
      layout: The sharding of the parameters.
    """
    loss = weight = 0.0
    for start in range(0, len(rows), batch_size):
        multihost.busy(f"loss of rows from {start} on")
        part = rows[start : start + batch_size]
        # The last batch is padded, so that one program serves all.
        padding = [(0, batch_size - len(part)), (0, 0)]
        batch = jax.tree.map(
            lambda *leaves, padding=padding: np.pad(np.stack(leaves), padding), *part
        )
        loss += float(_summed_loss(graph, params, layout.shard_batch(batch)))
        weight += float(batch.weights.sum())
    return loss / weight


@functools.partial(jax.jit, static_argnames="graph")
def _summed_loss(graph, params, batch):
    model = nnx.merge(graph, *params)
    hidden, _ = model.hidden(batch.tokens, batch.positions, batch.segments)
    return sum_losses(model, hidden, batch.targets, batch.weights)
