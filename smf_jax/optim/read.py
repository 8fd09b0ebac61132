"""An optimizer on the rows of tables that a batch read, some at a time.

The rows, their moments and what an optimizer makes of them would else be arrays of
their own, as large as all that was read.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from smf_jax.kernels.held import ROWS_AT_ONCE, places_spec
from smf_jax.optim.methods import map_state
from smf_jax.sharding import ONE_DEVICE, Placement


def update_read_rows(
    inner: optax.GradientTransformation,
    grads: PyTree,
    state: optax.OptState,
    params: PyTree,
    places: PyTree,
    placement: Placement = ONE_DEVICE,
) -> tuple[optax.OptState, PyTree]:
    """Returns an optimizer's state and tables, with the rows that were read moved.

    No other row changes, nor what the state keeps for it. What the state shares between
    rows, like Adam's step count, counts every step.

    Args:
      inner: An optimizer to which each row is alone: none that measures several.
      grads: `ReadRows.gradient` of each table.
      state: The optimizer's state, initialised on `params`.
      params: The tables [num_slots, value_dim].
      places: `ReadRows.places` of each table.
      placement: Where the tables are.
    """
    is_row = map_state(inner, lambda _: True, state, otherwise=lambda _: False)
    at_once = ROWS_AT_ONCE[placement.platform]
    local = functools.partial(_update_held, inner, is_row, at_once)
    spec = jax.tree.map(
        lambda is_row: placement.table if is_row else PartitionSpec(), is_row
    )
    split = (spec, placement.table)
    specs = (placement.table, *split, places_spec(placement))
    return placement.on_shards(local, specs, split)(grads, state, params, places)


def _update_held(inner, is_row, at_once, grads, state, params, places):
    """Does it with the rows that one device holds."""
    held = len(jax.tree.leaves(params)[0])
    room = len(jax.tree.leaves(places)[0])
    size = min(room, at_once)
    read = [(of_table < held).sum() for of_table in jax.tree.leaves(places)]
    most = functools.reduce(jnp.maximum, read)
    times = jnp.maximum(-(-most // size), 1)  # once at least, for what rows share

    def move(number, carry):
        moved, params = carry

        def cut(leaf):
            return jax.lax.dynamic_slice_in_dim(leaf, number * size, size)

        here = jax.tree.map(cut, places)
        here_of = map_state(
            inner, lambda _, here: here, state, here, otherwise=lambda leaf: leaf
        )
        # What rows share is that of before the step, each time.
        some = jax.tree.map(
            lambda is_row, new, old, at: _take(new, at) if is_row else old,
            is_row,
            moved,
            state,
            here_of,
        )
        before = jax.tree.map(_take, params, here)
        updates, after = inner.update(jax.tree.map(cut, grads), some, before)
        moved = jax.tree.map(
            lambda is_row, leaf, new, at: _put(leaf, new, at) if is_row else new,
            is_row,
            moved,
            after,
            here_of,
        )
        new = optax.apply_updates(before, updates)
        return moved, jax.tree.map(_put, params, new, here)

    return jax.lax.fori_loop(0, times, move, (state, params))


def _take(table, places):
    # Where places stand for none it is the last row, which is not put back.
    places = jnp.minimum(places, len(table) - 1)
    return table.at[places].get(mode="promise_in_bounds", indices_are_sorted=True)


def _put(table, rows, places):
    return table.at[places].set(
        rows, mode="drop", indices_are_sorted=True, unique_indices=True
    )
