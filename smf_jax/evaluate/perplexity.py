"""The loss of a model on held-out rows."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from smf_jax import multihost
from smf_jax.data.batches import Batch
from smf_jax.evaluate.intervals import Interval, ratio_interval
from smf_jax.model.build import inference_parts
from smf_jax.model.loss import sum_losses
from smf_jax.model.transformer import Transformer


class TextLoss(NamedTuple):
    """The weighted mean loss of all targets in nats, the log of perplexity."""

    n: int  # rows
    loss: float
    loss_95: Interval | None  # None: of a single row
    sums: list[float]  # of each row's losses
    weights: list[float]  # of each row's targets

    def change_to(self, after: "TextLoss") -> tuple[float, Interval | None]:
        """Returns how the loss of the same rows changed, with its 95 % interval.

        The interval is narrower than those of the two losses, since a row that is hard
        before is hard afterwards.
        """
        changes, weights = np.subtract(after.sums, self.sums), np.array(self.weights)
        change = float(changes.sum() / weights.sum())
        return change, ratio_interval(changes, weights)


def text_loss(model: Transformer, rows: Sequence[Batch], batch_size: int) -> TextLoss:
    """Returns the loss on single rows, all of one width, in batches of `batch_size`."""
    graph, params = inference_parts(model)
    sums = []
    for start in range(0, len(rows), batch_size):
        multihost.busy(f"loss of rows from {start} on")
        part = rows[start : start + batch_size]
        # The last batch is padded, so that one program serves all.
        padding = [(0, batch_size - len(part)), (0, 0)]
        batch = jax.tree.map(
            lambda *leaves, padding=padding: np.pad(np.stack(leaves), padding), *part
        )
        losses = _row_losses(graph, params, model.layout.shard_batch(batch))
        sums += np.asarray(losses, float)[: len(part)].tolist()
    weights = [float(row.weights.sum()) for row in rows]
    loss = sum(sums) / sum(weights)
    interval = ratio_interval(np.array(sums), np.array(weights))
    return TextLoss(len(rows), loss, interval, sums, weights)


@functools.partial(jax.jit, static_argnames="graph")
def _row_losses(graph, params, batch):
    model = nnx.merge(graph, params)
    hidden, _ = model.hidden(batch.tokens, batch.positions, batch.segments)

    def loss_of(row):
        return sum_losses(model, *jax.tree.map(lambda leaf: leaf[None], row))

    losses = jax.lax.map(loss_of, (hidden, batch.targets, batch.weights))
    return model.layout.constrain(losses)  # replicated, so that every host can read
