"""The update of everything that trains; of tables, if asked, the rows that are read."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from smf_jax.data.batches import Batch
from smf_jax.kernels.held import ReadRows, read_rows_gradient, rows_held
from smf_jax.model.memory import (
    Reads,
    imbalance,
    pool_of,
    weights_on_slots,
    zero_taps,
)
from smf_jax.optim.clip import clip, norm
from smf_jax.optim.methods import is_of_table
from smf_jax.optim.read import update_read_rows
from smf_jax.optim.rows import all_finite
from smf_jax.train.objective import loss_of_part, total_weight
from smf_jax.train.setting import Background, Metrics, Setting, TrainState


class Parts(NamedTuple):
    """The leaves of what trains by their place: what moves whole, and other tables."""

    structure: jax.tree_util.PyTreeDef
    whole: dict[int, Array]
    tables: dict[int, Array]  # in the order of the pools; rows of them move

    def join(self, leaves: dict[int, PyTree]) -> PyTree:
        """Returns a tree with a leaf at each place."""
        return self.structure.unflatten([leaves[place] for place in sorted(leaves)])

    def mask(self, leaves: dict[int, PyTree]) -> PyTree:
        """Returns a tree with leaves at the places of tables, and none elsewhere."""
        return self.join(dict.fromkeys(self.whole, optax.MaskedNode()) | leaves)

    def pick(self, tree: PyTree, places: Iterable[int]) -> dict[int, Array]:
        """Returns the leaves of a tree at some places."""
        leaves = jax.tree.leaves(tree)
        return {place: leaves[place] for place in places}


def update_all(
    setting: Setting,
    state: TrainState,
    frozen: PyTree,
    background: Background | None,
    batch: Batch,
    going_on: Bool[Array, ""],
    balance: float = 0.0,
) -> tuple[tuple[PyTree, PyTree], Metrics]:
    """Returns what trains and its optimizer state, moved.

    Where the method moves the rows that are read, a table's other rows keep their
    moments as well, and no array of its shape is made.

    Args:
      setting: The step.
      state: What it changes.
      frozen: What does not train.
      background: Of no use here; a choice of rows has one.
      batch: Its parts, one after the other along a leading axis.
      going_on: Whether anything may change.
      balance: Weight of the memory's `imbalance` beside the loss.
    """
    del background
    memory, method = setting.memory, setting.method
    parts = _split(state.trainable, method.read is not None)
    balance = balance if memory is not None else 0.0
    grads, metrics, read = _gradient(setting, parts, frozen, batch, balance)
    grads |= {place: of.gradient for place, of in read.items()}
    grads = parts.join(grads)
    metrics["gradient_norm"] = norm(grads, setting.placement)
    # Not of what is written: that is known too late to be chosen while it is written,
    # and a pass of its own took pretraining from 0.93 to 0.88 of its speed.
    finite = all_finite((metrics["loss"], metrics["gradient_norm"]))
    metrics["updated"] = updated = going_on & finite
    if read:
        held = rows_held(setting.placement, memory.num_slots)
        written = sum((of.places < held).sum() for of in read.values())
        metrics["slots_written"] = jnp.where(updated, written, 0)

    def move(trainable, opt_state):
        clipped = clip(grads, metrics["gradient_norm"], method.clip_norm)
        if read:
            places = {place: of.places for place, of in read.items()}
            return _move_read_rows(setting, trainable, opt_state, clipped, places)
        updates, opt_state = method.tx.update(clipped, opt_state, trainable)
        return optax.apply_updates(trainable, updates), opt_state

    def keep(trainable, opt_state):
        return trainable, opt_state

    # In a branch of its own all is written in place. Where each number is chosen, from
    # before or after, a compiler for CPUs copies an optimizer's moments first.
    moved = jax.lax.cond(updated, move, keep, state.trainable, state.opt_state)
    return moved, metrics


def _move_read_rows(setting, trainable, opt_state, grads, places):
    """Returns what trains and its optimizer state, of tables with read rows moved."""
    whole, rows = setting.method.read
    of_whole, of_rows = opt_state
    # Of what the branch was given, which is what it may write into.
    parts = _split(trainable, read_rows=True)
    updates, of_whole = whole.update(grads, of_whole, trainable)
    moved = {
        place: optax.apply_updates(parts.whole[place], update)
        for place, update in parts.pick(updates, parts.whole).items()
    }
    of_tables, tables = update_read_rows(
        rows,
        parts.mask(parts.pick(grads, places)),
        of_rows.inner_state,
        parts.mask(parts.tables),
        parts.mask(places),
        setting.placement,
    )
    moved |= dict(zip(places, jax.tree.leaves(tables), strict=True))
    return parts.join(moved), (of_whole, of_rows._replace(inner_state=of_tables))


def _split(trainable: PyTree, read_rows: bool) -> Parts:
    paths, leaves = zip(*jax.tree.leaves_with_path(trainable), strict=True)
    whole, tables = dict(enumerate(leaves)), {}
    if read_rows:
        tables = {n: whole.pop(n) for n, path in enumerate(paths) if is_of_table(path)}
    return Parts(jax.tree.structure(trainable), whole, tables)


def _gradient(
    setting: Setting, parts: Parts, frozen: PyTree, batch: Batch, balance: float
) -> tuple[dict[int, Array], Metrics, dict[int, ReadRows]]:
    """Returns the gradient of what moves whole, and of each table's read rows."""
    memory, total = setting.memory, total_weight(batch)
    several = len(batch.tokens) > 1
    slope = uneven = None
    if balance and several:
        uneven, slope = _slope_of_imbalance(setting, parts, frozen, batch)

    def objective(whole, taps, part):
        params = (parts.join(whole | parts.tables), frozen)
        loss, reads = loss_of_part(setting, params, taps, part, total)
        metrics = {"loss": loss}
        if balance:
            weights = _weights_of(setting, reads, part)
            term = (slope * weights).sum() if several else imbalance(weights)
            loss, metrics["imbalance"] = loss + balance * term, term
        return loss, (metrics, reads)

    def add_part(sums, part):
        taps = zero_taps(memory, *part.tokens.shape) if parts.tables else None
        gradient = jax.grad(objective, (0, 1), has_aux=True)
        (grads, cotangents), (metrics, reads) = gradient(parts.whole, taps, part)
        kept = (reads, cotangents) if parts.tables else None
        return jax.tree.map(jnp.add, sums, grads), (metrics, kept)

    zeros = jax.tree.map(jnp.zeros_like, parts.whole)
    grads, (metrics, kept) = jax.lax.scan(add_part, zeros, batch)
    metrics = {name: of_parts.sum() for name, of_parts in metrics.items()}
    if uneven is not None:
        metrics["imbalance"] = uneven
    if not parts.tables:
        return grads, metrics, {}
    read = _read_rows(setting, *kept, batch.segments > 0)
    return grads, metrics, dict(zip(parts.tables, read, strict=True))


def _slope_of_imbalance(setting, parts, frozen, batch) -> tuple[Array, Array]:
    """Returns the imbalance of a batch, and its gradient by the weights on slots.

    Imbalance is no sum over parts, but its gradient is, once all reads are known.
    """
    memory = setting.memory

    def add_weights(sums, part):
        params = (parts.join(parts.whole | parts.tables), frozen)
        _, reads = loss_of_part(setting, params, None, part, total_weight(batch))
        return sums + _weights_of(setting, reads, part), None

    none = jnp.zeros((memory.num_pools, memory.num_slots))
    weights, _ = jax.lax.scan(add_weights, none, batch)
    return jax.value_and_grad(imbalance)(weights)


def _weights_of(
    setting: Setting, reads: tuple[Reads, ...], part: Batch
) -> Float[Array, "pools num_slots"]:
    is_token = part.segments > 0
    return weights_on_slots(setting.memory, reads, is_token, setting.placement)


def _read_rows(setting, reads, cotangents, is_token) -> list[ReadRows]:
    """Returns of each table the rows that tokens read, and their gradients."""
    memory, pools = setting.memory, [[] for _ in range(setting.memory.num_pools)]
    for layer, (read, cotangent) in enumerate(zip(reads, cotangents, strict=True)):
        slots = jnp.where(is_token[..., None], read.slots, memory.num_slots)
        pools[pool_of(memory, layer)].append((cotangent, slots, read.weights))
    return [
        read_rows_gradient(
            setting.placement,
            *map(jnp.stack, zip(*of_pool, strict=True)),
            memory.num_slots,
        )
        for of_pool in pools
    ]
