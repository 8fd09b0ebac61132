"""One step for every method: gradient, choice of rows where there is one, update."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from smf_jax.config import MemoryConfig
from smf_jax.data.batches import Batch
from smf_jax.optim.methods import Method, map_state
from smf_jax.sharding import ONE_DEVICE, Placement
from smf_jax.train.chosen import update_chosen_rows
from smf_jax.train.dense import update_all
from smf_jax.train.setting import Background, Setting, TrainState

Step = Callable[[TrainState, PyTree, Background | None, Batch], tuple]


def make_step(
    graph: nnx.GraphDef,
    memory: MemoryConfig | None,
    method: Method,
    accumulate: int,
    balance: float = 0.0,
    max_skips: int = 0,
    placement: Placement = ONE_DEVICE,
) -> Step:
    """Returns `step(state, frozen, background, batch) -> (state, metrics)`, compiled.

    Where the loss, the gradient or a row to be written is not finite, the step changes
    nothing but `state.skipped`. Once that is above `max_skips`, no later step
    changes anything: the host may find out a step late and has lost nothing.

    Args:
      graph: The model's structure, split by the method's type of parameters.
      memory: The model's memory layers; a method that chooses rows needs them.
      method: What trains and how.
      accumulate: Parts in which a batch's gradient is computed. Rows are chosen
        once, by the reads of the whole batch.
      balance: Weight of the memory's `imbalance` beside the loss.
      max_skips: Steps that may go without an update.
      placement: Where all of it is.

    Raises:
      ValueError: `balance` is set for a method that chooses rows.
    """
    if balance and method.score is not None:
        raise ValueError(f"balance={balance} needs a method that trains everything")
    dense = functools.partial(update_all, balance=balance)
    update = dense if method.score is None else update_chosen_rows
    setting = Setting(graph, memory, method, placement)

    def step(state, frozen, background, batch):
        parts, going_on = _cut(batch, accumulate), state.skipped <= max_skips
        moved, metrics = update(setting, state, frozen, background, parts, going_on)
        skipped = state.skipped + (going_on & ~metrics["updated"])
        metrics |= {"skipped": skipped, "tokens": (batch.segments > 0).sum()}
        state = TrainState(*moved, skipped)
        if placement.mesh is not None:  # else the compiler chooses, and moves all of it
            shardings = state_shardings(placement, method, state)
            state = jax.lax.with_sharding_constraint(state, shardings)
        return state, metrics

    # Blocks below a known prefix are not looked at, but they are on the devices.
    return jax.jit(step, donate_argnums=0, keep_unused=True)


def state_shardings(
    placement: Placement, method: Method, state: TrainState
) -> TrainState:
    """Returns where each array of a state is, given arrays or their shapes.

    What an optimizer keeps for a parameter is where the parameter is.
    """
    trainable = placement.of_params(state.trainable)
    opt_state = map_state(
        method.tx,
        lambda _, sharding: sharding,
        state.opt_state,
        trainable,
        otherwise=lambda _: placement.everywhere,
    )
    return TrainState(trainable, opt_state, placement.everywhere)


def background_shardings(placement: Placement) -> Background:
    """Returns where each array of a background is."""
    slots = PartitionSpec(None, placement.row_axes or None)
    return Background(placement.sharding(slots), placement.everywhere)


def _cut(batch: Batch, parts: int) -> Batch:
    # Every so many rows a part, so that each device has as many rows of each.
    def cut(leaf):
        rows = jnp.reshape(leaf, (-1, parts, *leaf.shape[1:]))
        return jnp.moveaxis(rows, 1, 0)

    return jax.tree.map(cut, batch)
