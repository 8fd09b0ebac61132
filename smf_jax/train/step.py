"""Compiles the training step of a method."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from smf_jax.config import MemoryConfig
from smf_jax.data.batches import Batch
from smf_jax.optim.methods import Method
from smf_jax.sharding import ONE_DEVICE, MeshLayout
from smf_jax.slots.document_frequency import Background
from smf_jax.train.dense_step import dense_step
from smf_jax.train.smf_step import smf_step
from smf_jax.train.state import StepSpec, TrainState, state_shardings

Step = Callable[[TrainState, PyTree, Background | None, Batch], tuple]


def make_step(
    graph: nnx.GraphDef,
    memory: MemoryConfig | None,
    method: Method,
    grad_accum_steps: int = 1,
    balance_weight: float = 0.0,
    max_skips: int = 0,
    layout: MeshLayout = ONE_DEVICE,
) -> Step:
    """Returns `step(state, frozen, background, batch) -> (state, metrics)`, compiled.

    The state is donated. Where the loss, the gradient or a row to be written is not
    finite, a step changes nothing but `state.skipped`. Once that exceeds `max_skips`,
    no later step changes anything: the host may find out a step late.

    `graph` is that of a model split by `method.trainable`. A batch's gradient is
    computed in `grad_accum_steps` parts, but slots are selected once, by the reads of
    all. `balance_weight` is the weight of the memory's `balance_loss`.

    Raises:
      ValueError: `balance_weight` is set for a method that selects rows, or together
        with gradient accumulation.
    """
    weight = balance_weight if memory is not None else 0.0
    if weight and (method.score is not None or grad_accum_steps > 1):
        raise ValueError(
            f"balance_weight={balance_weight} needs a method without slot selection "
            f"and grad_accum_steps=1, not {grad_accum_steps}: the balance loss of a "
            "batch is not the sum of those of its parts"
        )
    dense = functools.partial(dense_step, balance_weight=weight)
    update = dense if method.score is None else smf_step
    spec = StepSpec(graph, memory, method, layout)

    def step(state, frozen, background, batch):
        parts = _cut(batch, grad_accum_steps)
        may_update = state.skipped <= max_skips
        moved, metrics = update(spec, state, frozen, background, parts, may_update)
        skipped = state.skipped + (may_update & ~metrics["updated"])
        metrics |= {"skipped": skipped, "tokens": (batch.segments > 0).sum()}
        state = TrainState(*moved, skipped)
        if layout.mesh is not None:  # else the compiler may choose to move all of it
            shardings = state_shardings(layout, method, state)
            state = jax.lax.with_sharding_constraint(state, shardings)
        return state, metrics

    # Cached prefixes leave the blocks below the memory unused; jit would prune these
    # arguments, and the caller passes them anyway.
    return jax.jit(step, donate_argnums=0, keep_unused=True)


def _cut(batch: Batch, parts: int) -> Batch:
    # Rows are dealt out in turn, so that each device has as many of each part.
    def cut(leaf):
        rows = jnp.reshape(leaf, (-1, parts, *leaf.shape[1:]))
        return jnp.moveaxis(rows, 1, 0)

    return jax.tree.map(cut, batch)
