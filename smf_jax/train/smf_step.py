"""One step of Sparse Memory Finetuning (Lin et al. 2025, arXiv:2510.15103).

A memory layer sums, for each token, weight * row over the slots it reads; layers may
share a table. Of the background's `documents` (batches), df[slot] read the slot.

1. Forward and backward: zeros are added to each layer's sums, and the loss is
   differentiated with respect to these perturbations alone: g[layer, token].
2. Count the reads of each slot, over all tokens but padding and all layers that share
   the table.
3. Score slots, `counts / sum(counts) * log((documents + 1) / (df + 1))`, and select the
   best of each table: at most `top_t`, all above 0, ties to the lower slot. (Ours,
   where the method says so: facts that are answered leave loss and counts, and the
   slots of the facts that are left were chosen by their scores before the first step.)
4. The gradient of a selected row is the sum of weight * g[layer, token] over its reads.
   Scale all of them to a global norm of at most `max_grad_norm`, and run the optimizer
   on these rows, with their rows of its state. All other parameters are frozen.
5. Write the rows and their optimizer state in place, unless the loss, the norm or a new
   row of any table is not finite: then nothing changes.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from smf_jax.config import MemoryConfig
from smf_jax.data.batches import Batch
from smf_jax.kernels.table_rows import put_rows, selected_rows_gradient
from smf_jax.model.memory import Reads, table_of, zero_perturbations
from smf_jax.optim.grad_norm import clip, global_norm
from smf_jax.optim.rows import all_finite, update_rows
from smf_jax.sharding import ONE_DEVICE, MeshLayout
from smf_jax.slots.document_frequency import BACKGROUND_AXES, Background
from smf_jax.slots.select import count_reads, top_slots
from smf_jax.train.batch_loss import BatchReads, batch_loss, loss_weight
from smf_jax.train.state import Metrics, StepSpec, TrainState


def smf_step(
    spec: StepSpec,
    state: TrainState,
    frozen: PyTree,
    background: Background | None,
    batch: Batch,
    may_update: Bool[Array, ""],
) -> tuple[tuple[PyTree, PyTree], Metrics]:
    """Returns the tables and their optimizer state after one step, and its metrics.

    Args:
      spec: The step.
      state: Its trainable parameters are the value tables and nothing else.
      frozen: All other parameters.
      background: Document frequency of each slot; None: the batch names its rows.
      batch: Cut into parts along a leading axis; slots are selected once, by all parts.
      may_update: Whether anything may change.
    """
    memory, method, layout = spec.memory, spec.method, spec.layout
    # 1, 2: forward and backward, counts
    loss, read, gradients = _forward_backward(spec, state.trainable, frozen, batch)
    reads, trains = read
    is_token = (batch.segments > 0) & trains[..., None]
    counts = count_table_reads(reads, is_token, memory, layout)
    # 3: selection
    if batch.own_rows is None:
        axes = (0, *BACKGROUND_AXES)
        scores = jax.vmap(method.score, axes)(counts, *background)
        selected = [top_slots(of_table, method.top_t, layout) for of_table in scores]
    else:
        own = is_token.any(-1, keepdims=True)
        rows = jnp.where(own, batch.own_rows, memory.table_rows)
        rows = layout.constrain(rows)  # replicated, as all devices write them
        selected = [_distinct(rows, method.top_t, memory.table_rows)]
    # 4: gradient, clipping and optimizer of the selected rows
    row_grads = _row_gradients(memory, layout, reads, gradients, selected)
    norm = global_norm(row_grads)
    as_params = jax.tree.structure(state.trainable).unflatten
    update = update_rows(
        method.tx,
        as_params(clip(row_grads, norm, method.max_grad_norm)),
        state.opt_state,
        state.trainable,
        as_params(selected),
        may_update & all_finite((loss, norm)),
        layout,
    )
    # 5: guarded write
    write = functools.partial(put_rows, layout)
    tables = jax.tree.map(write, state.trainable, update.slots, update.rows)
    written = jax.tree.leaves(update.slots)
    return (tables, update.state), {
        "loss": loss,
        "gradient_norm": norm,
        "updated": update.allowed,
        "slots_read": (counts > 0).sum(),
        "slots_written": sum((slots < memory.table_rows).sum() for slots in written),
    }


def _forward_backward(
    spec: StepSpec, tables: PyTree, frozen: PyTree, batch: Batch
) -> tuple[Float[Array, ""], BatchReads, tuple[Array, ...]]:
    """Returns loss, reads, and the gradient of each memory layer's perturbation."""
    total = loss_weight(batch)

    def add_part(loss, part):
        def loss_fn(perturbations):
            return batch_loss(spec, (tables, frozen), part, total, perturbations)

        zeros = zero_perturbations(spec.memory, *part.tokens.shape)
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (part_loss, reads), gradients = gradient(zeros)
        return loss + part_loss, (reads, gradients)

    # Each part's reads are kept: selection has to wait for the last one.
    loss, (reads, gradients) = jax.lax.scan(add_part, jnp.zeros(()), batch)
    return loss, reads, gradients


def _distinct(
    rows: Int[Array, "..."], top_t: int, table_rows: int
) -> Int[Array, " top_t"]:
    """Returns each row once, padded by different ids of `table_rows` or more."""
    rows = jnp.unique(rows, size=top_t, fill_value=table_rows)
    padding = table_rows + jnp.arange(top_t, dtype=rows.dtype)
    return jnp.where(rows < table_rows, rows, padding)


def count_table_reads(
    reads: tuple[Reads, ...],
    is_token: Bool[Array, "*batch seq"],
    memory: MemoryConfig,
    layout: MeshLayout = ONE_DEVICE,
) -> Int[Array, "tables table_rows"]:
    """Returns how often tokens read each row of each table."""
    counts = [jnp.zeros(memory.table_rows, jnp.int32)] * memory.num_tables
    for layer, read in enumerate(reads):
        table = table_of(memory, layer)
        counts[table] += count_reads(read.slots, is_token, memory.table_rows, layout)
    return jnp.stack(counts)


def _row_gradients(
    memory: MemoryConfig,
    layout: MeshLayout,
    reads: tuple[Reads, ...],
    gradients: tuple[Array, ...],
    selected: list[Int[Array, " top_t"]],
) -> list[Float[Array, "top_t value_dim"]]:
    """Returns the gradient of each table's selected rows, summed over its layers."""
    row_grads = [jnp.zeros((len(slots), memory.value_dim)) for slots in selected]
    for layer, (read, gradient) in enumerate(zip(reads, gradients, strict=True)):
        table = table_of(memory, layer)
        row_grads[table] = row_grads[table] + selected_rows_gradient(
            layout, gradient, *read, selected[table], memory.table_rows
        )
    return row_grads
