"""One step of every method that updates whole parameters: full, LoRA, retrofit."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

from smf_jax.data.batches import Batch
from smf_jax.model.memory import balance_loss, weights_on_slots
from smf_jax.optim.grad_norm import clip, global_norm
from smf_jax.optim.rows import all_finite
from smf_jax.slots.document_frequency import Background
from smf_jax.train.batch_loss import batch_loss, loss_weight
from smf_jax.train.state import Metrics, StepSpec, TrainState


def dense_step(
    spec: StepSpec,
    state: TrainState,
    frozen: PyTree,
    background: Background | None,
    batch: Batch,
    may_update: Bool[Array, ""],
    balance_weight: float = 0.0,
) -> tuple[tuple[PyTree, PyTree], Metrics]:
    """Returns the trainable parameters and their optimizer state after one step.

    As `smf_step`, but without slots and thus without a background. `balance_weight` may
    be above 0 only for a batch in one part.
    """
    del background
    method = spec.method
    grads, metrics = _gradient(spec, state.trainable, frozen, batch, balance_weight)
    metrics["gradient_norm"] = norm = global_norm(grads, spec.layout)
    # New parameters are not checked: that cut the throughput of pretraining by 5 %.
    updated = may_update & all_finite((metrics["loss"], norm))
    metrics["updated"] = updated

    def update(trainable, opt_state):
        clipped = clip(grads, norm, method.max_grad_norm)
        updates, opt_state = method.tx.update(clipped, opt_state, trainable)
        return optax.apply_updates(trainable, updates), opt_state

    def skip(trainable, opt_state):
        return trainable, opt_state

    # A branch writes in place. Selecting old or new number by number would make the
    # CPU compiler copy the optimizer's moments first.
    moved = jax.lax.cond(updated, update, skip, state.trainable, state.opt_state)
    return moved, metrics


def _gradient(
    spec: StepSpec,
    trainable: PyTree,
    frozen: PyTree,
    batch: Batch,
    balance_weight: float,
) -> tuple[PyTree, Metrics]:
    """Returns the gradient summed over the parts of a batch, and the loss."""
    total = loss_weight(batch)

    def loss_fn(trainable, part):
        loss, (reads, _) = batch_loss(spec, (trainable, frozen), part, total)
        metrics = {"loss": loss}
        if balance_weight:
            is_token = part.segments > 0
            weights = weights_on_slots(spec.memory, reads, is_token, spec.layout)
            metrics["balance_loss"] = balance_loss(weights)
            loss = loss + balance_weight * metrics["balance_loss"]
        return loss, metrics

    def add_part(grads, part):
        part_grads, metrics = jax.grad(loss_fn, has_aux=True)(trainable, part)
        return jax.tree.map(jnp.add, grads, part_grads), metrics

    zeros = jax.tree.map(jnp.zeros_like, trainable)
    grads, metrics = jax.lax.scan(add_part, zeros, batch)
    return grads, {name: parts.sum() for name, parts in metrics.items()}
