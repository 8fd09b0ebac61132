"""The update of sparse finetuning: rows that the reads of a batch choose."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from smf_jax.data.batches import Batch
from smf_jax.kernels.chosen import chosen_rows_gradient
from smf_jax.model.memory import pool_of, zero_taps
from smf_jax.optim.clip import clip, norm
from smf_jax.optim.rows import all_finite, update_rows, write_rows
from smf_jax.slots.select import top_slots
from smf_jax.train.counts import read_counts
from smf_jax.train.objective import loss_of_part, total_weight
from smf_jax.train.setting import Background, Metrics, Setting, TrainState


def update_chosen_rows(
    setting: Setting,
    state: TrainState,
    frozen: PyTree,
    background: Background,
    batch: Batch,
    going_on: Bool[Array, ""],
) -> tuple[tuple[PyTree, PyTree], Metrics]:
    """Returns what trains and its optimizer state, with the chosen rows moved.

    Args:
      setting: The step.
      state: What it changes; of parameters the tables alone, in the order of the pools.
      frozen: What does not train.
      background: What the choice compares the batch with.
      batch: Its parts, one after the other along a leading axis.
      going_on: Whether anything may change.
    """
    memory, placement = setting.memory, setting.placement
    total = total_weight(batch)

    def read_part(loss, part):
        taps = zero_taps(memory, *part.tokens.shape)
        params = (state.trainable, frozen)
        (part_loss, reads), cotangents = jax.value_and_grad(
            lambda taps: loss_of_part(setting, params, taps, part, total),
            has_aux=True,
        )(taps)
        return loss + part_loss, (reads, cotangents)

    # Every part is kept, not summed: which rows matter is known only after the last.
    loss, (reads, cotangents) = jax.lax.scan(read_part, jnp.zeros(()), batch)
    counts = read_counts(reads, batch.segments > 0, memory, placement)
    method = setting.method
    scores = jax.vmap(method.score, (0, 0, None))(counts, *background)
    chosen = [top_slots(pool, method.top_t, placement) for pool in scores]
    row_grads = [jnp.zeros((method.top_t, memory.value_dim))] * memory.num_pools
    for layer, (read, cotangent) in enumerate(zip(reads, cotangents, strict=True)):
        pool = pool_of(memory, layer)
        row_grads[pool] = row_grads[pool] + chosen_rows_gradient(
            placement, cotangent, *read, chosen[pool], memory.num_slots
        )

    structure = jax.tree.structure(state.trainable)
    gradient_norm = norm(row_grads)
    moved = update_rows(
        method.tx,
        structure.unflatten(clip(row_grads, gradient_norm, method.clip_norm)),
        state.opt_state,
        state.trainable,
        structure.unflatten(chosen),
        going_on & all_finite((loss, gradient_norm)),
        placement,
    )
    written = jax.tree.leaves(moved.slots)
    tables = write_rows(state.trainable, moved.updates, moved.slots, placement)
    return (tables, moved.state), {
        "loss": loss,
        "gradient_norm": gradient_norm,
        "updated": moved.allowed,
        "slots_read": (counts > 0).sum(),
        "slots_written": sum((pool < memory.num_slots).sum() for pool in written),
    }
