"""One step for every method: gradient, choice of rows where there is one, update."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from smf_jax.config import MemoryConfig
from smf_jax.data.batches import Batch
from smf_jax.kernels import sharded
from smf_jax.model.loss import sum_losses
from smf_jax.model.memory import (
    Reads,
    imbalance,
    pool_of,
    weights_on_slots,
    zero_taps,
)
from smf_jax.optim.methods import Method
from smf_jax.optim.rows import all_finite, update_rows, write_rows
from smf_jax.sharding import ONE_DEVICE, Placement
from smf_jax.slots.select import count_reads, top_slots


class TrainState(NamedTuple):
    """What a step changes."""

    trainable: PyTree
    opt_state: optax.OptState
    skipped: Int[Array, ""]  # steps without an update, as their numbers were not finite


class Background(NamedTuple):
    """What the choice of slots compares a batch with."""

    document_frequency: Int[Array, "pools num_slots"]
    num_documents: Int[Array, ""]


Metrics = dict[str, Array]
Step = Callable[[TrainState, PyTree, Background | None, Batch], tuple]


def make_step(
    graph: nnx.GraphDef,
    memory: MemoryConfig | None,
    method: Method,
    accumulate: int,
    balance: float = 0,
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
    dense = functools.partial(_update_all, balance=balance)
    update = dense if method.score is None else _update_chosen_rows
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


class Setting(NamedTuple):
    """What of a step is known before it is compiled."""

    graph: nnx.GraphDef
    memory: MemoryConfig | None
    method: Method
    placement: Placement


def state_shardings(
    placement: Placement, method: Method, state: TrainState
) -> TrainState:
    """Returns where each array of a state is, given arrays or their shapes.

    What an optimizer keeps for a parameter is where the parameter is.
    """
    trainable = placement.of_params(state.trainable)

    def is_left_out(leaf):  # of one of several rules, as Muon and Adam share parameters
        return isinstance(leaf, optax.MaskedNode)

    opt_state = optax.tree.map_params(
        method.tx,
        lambda leaf, sharding: leaf if is_left_out(leaf) else sharding,
        state.opt_state,
        trainable,
        transform_non_params=lambda _: placement.everywhere,
        is_leaf=is_left_out,
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


def _loss(graph, trainable, frozen, taps, part: Batch, total: Array):
    """Returns the part's share of the mean loss over `total` weight, in nats."""
    model = nnx.merge(graph, trainable, frozen)
    text = (part.tokens, part.positions, part.segments)
    hidden, reads = model.hidden(*text, taps, part.prefix)
    scored = (hidden, part.targets, part.weights)
    if part.scored is not None:  # a large vocabulary is what costs most of all
        scored = (
            sharded.take_places(model.placement, leaf, part.scored) for leaf in scored
        )
    return sum_losses(model, *scored) / total, reads


def _total_weight(batch: Batch) -> Float[Array, ""]:
    return jnp.maximum(batch.weights.sum(), 1)


def _update_all(setting, state, frozen, background, batch, going_on, balance):
    del background
    graph, memory, method, placement = setting
    total, several = _total_weight(batch), len(batch.tokens) > 1
    balance = balance if memory is not None else 0

    def weights_of(reads, part):
        return weights_on_slots(memory, reads, part.segments > 0, placement)

    def add_weights(sums, part):
        _, reads = _loss(graph, state.trainable, frozen, None, part, total)
        return sums + weights_of(reads, part), None

    # Imbalance is no sum over parts, but its gradient is, once all reads are known.
    slope = uneven = None
    if balance and several:
        none = jnp.zeros((memory.num_pools, memory.num_slots))
        weights, _ = jax.lax.scan(add_weights, none, batch)
        uneven, slope = jax.value_and_grad(imbalance)(weights)

    def objective(trainable, part):
        loss, reads = _loss(graph, trainable, frozen, None, part, total)
        metrics = {"loss": loss}
        if balance:
            weights = weights_of(reads, part)
            term = (slope * weights).sum() if several else imbalance(weights)
            loss, metrics["imbalance"] = loss + balance * term, term
        return loss, metrics

    def add_part(sums, part):
        grads, metrics = jax.grad(objective, has_aux=True)(state.trainable, part)
        return jax.tree.map(jnp.add, sums, grads), metrics

    zeros = jax.tree.map(jnp.zeros_like, state.trainable)
    grads, metrics = jax.lax.scan(add_part, zeros, batch)
    updates, opt_state = method.tx.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    metrics = {name: of_parts.sum() for name, of_parts in metrics.items()}
    if uneven is not None:
        metrics["imbalance"] = uneven
    metrics["gradient_norm"] = optax.tree.norm(grads)
    # Not of what is written: that is known too late to be chosen while it is written,
    # and a pass of its own took pretraining from 0.93 to 0.88 of its speed.
    finite = all_finite((metrics["loss"], metrics["gradient_norm"]))
    metrics["updated"] = updated = going_on & finite
    before = (state.trainable, state.opt_state)
    moved = jax.tree.map(
        functools.partial(jnp.where, updated), (trainable, opt_state), before
    )
    return moved, metrics


def _update_chosen_rows(setting, state, frozen, background, batch, going_on):
    graph, memory, method, placement = setting
    total = _total_weight(batch)

    def read_part(loss, part):
        taps = zero_taps(memory, *part.tokens.shape)
        (part_loss, reads), cotangents = jax.value_and_grad(
            lambda taps: _loss(graph, state.trainable, frozen, taps, part, total),
            has_aux=True,
        )(taps)
        return loss + part_loss, (reads, cotangents)

    # Every part is kept, not summed: which rows matter is known only after the last.
    loss, (reads, cotangents) = jax.lax.scan(read_part, jnp.zeros(()), batch)
    counts = read_counts(reads, batch.segments > 0, memory, placement)
    scores = jax.vmap(method.score, (0, 0, None))(counts, *background)
    chosen = [top_slots(pool, method.top_t, placement) for pool in scores]
    row_grads = [jnp.zeros((method.top_t, memory.value_dim))] * memory.num_pools
    for layer, (read, cotangent) in enumerate(zip(reads, cotangents, strict=True)):
        pool = pool_of(memory, layer)
        row_grads[pool] = row_grads[pool] + sharded.chosen_rows_gradient(
            placement, cotangent, *read, chosen[pool], memory.num_slots
        )

    gradient_norm = optax.tree.norm(row_grads)
    # The trainable tree holds the tables alone, in the order of the pools.
    tables, structure = jax.tree.flatten(state.trainable)
    moved = update_rows(
        method.tx,
        jax.tree.unflatten(structure, row_grads),
        state.opt_state,
        state.trainable,
        jax.tree.unflatten(structure, chosen),
        going_on & all_finite((loss, gradient_norm)),
        placement=placement,
    )
    written = jax.tree.leaves(moved.slots)
    updates = jax.tree.leaves(moved.updates)
    tables = write_rows(tables, updates, written, placement)
    return (jax.tree.unflatten(structure, tables), moved.state), {
        "loss": loss,
        "gradient_norm": gradient_norm,
        "updated": moved.allowed,
        "slots_read": (counts > 0).sum(),
        "slots_written": sum((pool < memory.num_slots).sum() for pool in written),
    }


def read_counts(
    reads: tuple[Reads, ...],
    is_token: Bool[Array, "*batch seq"],
    memory: MemoryConfig,
    placement: Placement = ONE_DEVICE,
) -> Int[Array, "pools num_slots"]:
    """Returns how often each slot of each table was read by tokens."""
    counts = [jnp.zeros(memory.num_slots, jnp.int32)] * memory.num_pools
    for layer, read in enumerate(reads):
        pool = pool_of(memory, layer)
        counts[pool] += count_reads(read.slots, is_token, memory.num_slots, placement)
    return jnp.stack(counts)


def make_read_counter(
    graph: nnx.GraphDef, memory: MemoryConfig, placement: Placement = ONE_DEVICE
) -> Callable[[tuple[PyTree, ...], Batch], Int[Array, "pools num_slots"]]:
    """Returns a compiled `(params, batch) -> how often each slot was read`.

    `params` are in the parts that `graph` was split into.
    """

    @jax.jit
    def count(params, batch):
        model = nnx.merge(graph, *params)
        _, reads = model(batch.tokens, batch.positions, batch.segments)
        counts = read_counts(reads, batch.segments > 0, memory, placement)
        return placement.constrain(counts)  # whole, as the host is to read them

    return count
