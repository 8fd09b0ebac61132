"""Optimizers that move chosen rows of a table and nothing else, state included."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PyTree

from smf_jax.kernels.chosen import put_rows, take_rows
from smf_jax.sharding import ONE_DEVICE, Placement


class RowUpdate(NamedTuple):
    """What an optimizer makes of the gradients of chosen rows."""

    updates: PyTree  # [top_t, ...] of each leaf, to be added to `slots`
    state: optax.OptState  # of which only those rows have changed
    slots: PyTree  # the chosen ones, or none where nothing may change
    allowed: Bool[Array, ""] | None


def update_rows(
    inner: optax.GradientTransformation,
    row_grads: PyTree,
    state: optax.OptState,
    params: PyTree,
    slots: PyTree,
    allowed: Bool[Array, ""] | None = None,
    placement: Placement = ONE_DEVICE,
    **extra_args: Any,
) -> RowUpdate:
    """Runs `inner` on chosen rows, and returns their updates and the whole new state.

    `inner` sees only those rows: its decay and its moments touch them alone. What its
    state shares between rows, like Adam's step count, counts every step: a row first
    chosen late gets little bias correction.

    Args:
      inner: Any optimizer, initialised on the whole of `params`.
      row_grads: Gradients [top_t, ...] of the chosen rows of each leaf.
      state: The optimizer's state.
      params: Whole tables [num_slots, ...].
      slots: The chosen rows of each leaf, all different; ids of num_slots or more
        stand for none.
      allowed: Whether anything may change at all. If it is given, nothing changes
        either where a row would get a number that is not finite.
      placement: Where the tables are, and what of the state has their shape.
      extra_args: For `inner`.
    """
    take = functools.partial(take_rows, placement)

    def put(new, leaf, slots):
        return put_rows(placement, leaf, slots, new)

    inner = optax.with_extra_args_support(inner)
    is_row = optax.tree.map_params(
        inner, lambda _: True, state, transform_non_params=lambda _: False
    )
    slots_of = optax.tree.map_params(
        inner,
        lambda _, slots: slots,
        state,
        slots,
        transform_non_params=lambda leaf: leaf,
    )

    def on_rows(function, *trees):
        def apply(is_row, leaf, *rest):
            return function(leaf, *rest) if is_row else leaf

        return jax.tree.map(apply, is_row, *trees)

    before = jax.tree.map(take, params, slots)
    updates, rows = inner.update(
        row_grads, on_rows(take, state, slots_of), before, **extra_args
    )
    if allowed is not None:
        allowed &= all_finite(optax.apply_updates(before, updates))
        only_if_allowed = functools.partial(_slots_if, allowed)
        slots = jax.tree.map(only_if_allowed, slots, params)
        slots_of = on_rows(only_if_allowed, slots_of, state)
        rows = jax.tree.map(
            lambda is_row, new, old: new if is_row else jnp.where(allowed, new, old),
            is_row,
            rows,
            state,
        )
    state = on_rows(put, rows, state, slots_of)
    return RowUpdate(updates, state, slots, allowed)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Returns whether every number is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _slots_if(allowed, slots, table):
    # So that nothing is written; to select between two tables would copy them.
    none = len(table) + jnp.arange(len(slots), dtype=slots.dtype)
    return jnp.where(allowed, slots, none)


def write_rows(
    params: PyTree, updates: PyTree, slots: PyTree, placement: Placement = ONE_DEVICE
) -> PyTree:
    """Adds updates [top_t, ...] to the chosen rows; every other row keeps its bits."""

    def add(leaf, update, slots):
        rows = take_rows(placement, leaf, slots)
        return put_rows(placement, leaf, slots, rows + update)

    return jax.tree.map(add, params, updates, slots)


def only_rows(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Confines any optimizer to the rows that each step names.

    `update(updates, state, params, slots=...)` takes the chosen rows, all different,
    as one array for every leaf; ids past the last row stand for none. Rows that were
    not named keep their state, bit for bit, and get an update of 0. A leaf of
    `updates` is the dense gradient, of the shape of its parameter, or compact, with
    one row for each of `slots`; the update comes back in the same form, and
    `write_rows` adds a compact one. (Adding a dense 0 turns -0.0 into 0.0.)
    """

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        slots: Int[Array, " top_t"],
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError(
                "only_rows needs params: it tells rows from tables by them"
            )

        def is_dense(leaf, param):
            return leaf.shape == param.shape

        def to_rows(leaf, param):
            if not is_dense(leaf, param):
                return leaf
            return leaf.at[slots].get(mode="fill", fill_value=0)

        def to_given_form(row, leaf, param):
            if not is_dense(leaf, param):
                return row
            zeros = jnp.zeros_like(param)
            return zeros.at[slots].set(row, mode="drop", unique_indices=True)

        rows, state, *_ = update_rows(
            inner,
            jax.tree.map(to_rows, updates, params),
            state,
            params,
            jax.tree.map(lambda _: slots, params),
            **extra_args,
        )
        return jax.tree.map(to_given_form, rows, updates, params), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
