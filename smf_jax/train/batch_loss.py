"""The training loss of one part of a batch."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from smf_jax.data.batches import Batch
from smf_jax.kernels import sharded
from smf_jax.model.loss import sum_losses
from smf_jax.model.memory import Reads
from smf_jax.train.state import StepSpec


def batch_loss(
    spec: StepSpec,
    params: tuple[PyTree, PyTree],
    batch: Batch,
    total_weight: Float[Array, ""],
    perturbations: tuple[Array, ...] | None = None,
) -> tuple[Float[Array, ""], tuple[Reads, ...]]:
    """Returns a batch's summed loss over `total_weight`, in nats, and its slot reads.

    If gradients are accumulated, it is one part, and the weight is that of all parts.
    `perturbations` are added to the summed rows of each memory layer.
    """
    model = nnx.merge(spec.graph, *params)
    text = (batch.tokens, batch.positions, batch.segments)
    hidden, reads = model.hidden(
        *text, perturbations, batch.prefix, batch.loss_positions
    )
    targets = (batch.targets, batch.weights)
    if batch.loss_positions is not None:  # the head is the most expensive layer
        targets = (
            sharded.take_positions(model.layout, leaf, batch.loss_positions)
            for leaf in targets
        )
    return sum_losses(model, hidden, *targets) / total_weight, reads


def loss_weight(batch: Batch) -> Float[Array, ""]:
    """Returns the weight that a batch's summed loss is divided by."""
    return jnp.maximum(batch.weights.sum(), 1)
