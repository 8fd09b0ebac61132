"""The training loss of one part of a batch."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PyTree

from smf_jax.data.batches import Batch
from smf_jax.kernels import sharded
from smf_jax.model.loss import sum_losses, token_losses
from smf_jax.model.memory import Reads
from smf_jax.train.answered import is_open
from smf_jax.train.state import StepSpec


class BatchReads(NamedTuple):
    """What a batch read, and which of its rows are of facts still to be learned."""

    reads: tuple[Reads, ...]  # of each memory layer
    trains: Bool[Array, " batch"]


def batch_loss(
    spec: StepSpec,
    params: tuple[PyTree, PyTree],
    batch: Batch,
    total_weight: Float[Array, ""],
    perturbations: tuple[Array, ...] | None = None,
) -> tuple[Float[Array, ""], BatchReads]:
    """Returns a batch's summed loss over `total_weight`, in nats, and its slot reads.

    Facts that are answered, as the method says, have a loss of 0.

    If gradients are accumulated, it is one part, and the weight is that of all parts.
    `perturbations` are added to the summed rows of each memory layer.
    """
    model = nnx.merge(spec.graph, *params)
    text = (batch.tokens, batch.positions, batch.segments)
    hidden, reads = model.hidden(
        *text, perturbations, batch.prefix, batch.loss_positions
    )
    targets, weights = batch.targets, batch.weights
    if batch.loss_positions is not None:  # the head is the most expensive layer
        targets, weights = (
            sharded.take_positions(model.layout, leaf, batch.loss_positions)
            for leaf in (targets, weights)
        )
    trains = jnp.ones(len(batch.tokens), bool)
    if spec.method.answered:
        losses = token_losses(model, hidden, targets) * (weights > 0)
        trains = is_open(batch, losses, spec.method.answered)
        weights = weights * trains[:, None]
    loss = sum_losses(model, hidden, targets, weights) / total_weight
    return loss, BatchReads(reads, trains)


def loss_weight(batch: Batch) -> Float[Array, ""]:
    """Returns the weight that a batch's summed loss is divided by."""
    return jnp.maximum(batch.weights.sum(), 1)
