"""The loss of a part of a batch."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from smf_jax.data.batches import Batch
from smf_jax.kernels import sharded
from smf_jax.model.loss import sum_losses
from smf_jax.model.memory import Reads
from smf_jax.train.setting import Setting


def loss_of_part(
    setting: Setting,
    params: tuple[PyTree, PyTree],
    taps: tuple[Array, ...] | None,
    part: Batch,
    total: Float[Array, ""],
) -> tuple[Float[Array, ""], tuple[Reads, ...]]:
    """Returns a part's share of the mean loss over a batch, in nats, and its reads.

    Args:
      setting: The step.
      params: What trains, and what does not.
      taps: Added to the summed rows of each memory layer, for their gradient.
      part: The part.
      total: Weight of the whole batch.
    """
    model = nnx.merge(setting.graph, *params)
    text = (part.tokens, part.positions, part.segments)
    hidden, reads = model.hidden(*text, taps, part.prefix, part.scored)
    targets = (part.targets, part.weights)
    if part.scored is not None:  # a large vocabulary is what costs most of all
        targets = (
            sharded.take_places(model.placement, leaf, part.scored) for leaf in targets
        )
    return sum_losses(model, hidden, *targets) / total, reads


def total_weight(batch: Batch) -> Float[Array, ""]:
    """Returns the weight that the losses of a batch are divided by."""
    return jnp.maximum(batch.weights.sum(), 1)
