"""Optimizers confined to selected rows of a table, optimizer state included."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PyTree

from smf_jax.kernels.table_rows import put_rows, take_rows
from smf_jax.sharding import ONE_DEVICE, MeshLayout


class RowUpdate(NamedTuple):
    """What an optimizer makes of the gradients of selected rows."""

    updates: PyTree  # [top_t, ...] of each leaf, to be added to the rows
    rows: PyTree  # [top_t, ...] of each leaf: the rows with the updates added
    state: optax.OptState  # in which only those rows have changed
    slots: PyTree  # the selected ones, or none if nothing may change
    allowed: Bool[Array, ""] | None


def update_rows(
    inner: optax.GradientTransformation,
    row_grads: PyTree,
    state: optax.OptState,
    params: PyTree,
    slots: PyTree,
    allowed: Bool[Array, ""] | None = None,
    layout: MeshLayout = ONE_DEVICE,
    **extra_args: Any,
) -> RowUpdate:
    """Runs `inner` on selected rows; `kernels.table_rows.put_rows` writes the result.

    `inner` sees only those rows: its weight decay and moments touch them alone. State
    shared between rows, such as Adam's step count, advances every step, so a row first
    selected late gets little bias correction.

    Args:
      inner: Any optimizer, initialised on the whole of `params`.
      row_grads: Gradients [top_t, ...] of the selected rows of each leaf.
      state: The optimizer's state.
      params: Tables [num_slots, ...].
      slots: The selected rows of each leaf, all different; ids of num_slots or more
        are padding.
      allowed: Whether anything may change. If given, nothing changes either where a
        new row would not be finite.
      layout: Devices of the tables and of the state shaped like them.
      extra_args: For `inner`.
    """
    take = functools.partial(take_rows, layout)

    def put(new, leaf, slots):
        return put_rows(layout, leaf, slots, new)

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
    updates, row_state = inner.update(
        row_grads, on_rows(take, state, slots_of), before, **extra_args
    )
    rows = optax.apply_updates(before, updates)
    if allowed is not None:
        allowed &= all_finite(rows)
        if_allowed = functools.partial(_slots_if, allowed)
        slots = jax.tree.map(if_allowed, slots, params)
        slots_of = on_rows(if_allowed, slots_of, state)
        row_state = jax.tree.map(
            lambda is_row, new, old: new if is_row else jnp.where(allowed, new, old),
            is_row,
            row_state,
            state,
        )
    state = on_rows(put, row_state, state, slots_of)
    return RowUpdate(updates, rows, state, slots, allowed)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Returns whether every number is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _slots_if(allowed, slots, table):
    # Padding ids write nothing; selecting between two tables would copy them.
    padding = len(table) + jnp.arange(len(slots), dtype=slots.dtype)
    return jnp.where(allowed, slots, padding)


def only_rows(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Confines any optimizer to the rows named at each step, by `update_rows`.

    `update(updates, state, params, slots=...)` takes the selected rows, all different,
    as one array for every leaf; ids past the last row are padding. All other rows keep
    their optimizer state, bit for bit, and get an update of 0. A leaf of `updates` is
    the dense gradient, of the shape of its parameter, or compact, with one row for each
    of `slots`; the update comes back in the same form. (Adding a dense 0 turns -0.0
    into 0.0; `table.at[slots].add(update, mode="drop")` adds a compact one.)
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

        moved = update_rows(
            inner,
            jax.tree.map(to_rows, updates, params),
            state,
            params,
            jax.tree.map(lambda _: slots, params),
            **extra_args,
        )
        return jax.tree.map(to_given_form, moved.updates, updates, params), moved.state

    return optax.GradientTransformationExtraArgs(inner.init, update)
