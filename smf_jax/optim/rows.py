"""Optimizers that move chosen rows of a table and nothing else, state included."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree


def update_rows(
    inner: optax.GradientTransformation,
    row_grads: PyTree,
    state: optax.OptState,
    params: PyTree,
    slots: PyTree,
    **extra_args: Any,
) -> tuple[PyTree, optax.OptState]:
    """Runs `inner` on chosen rows, and returns their updates and the whole state.

    `inner` sees only those rows: its clipping measures their gradient, its decay and
    its moments touch them alone. What its state shares between rows, like Adam's step
    count, counts every step: a row first chosen late gets little bias correction.

    Args:
      inner: Any optimizer, initialised on the whole of `params`.
      row_grads: Gradients [top_t, ...] of the chosen rows of each leaf.
      state: The optimizer's state.
      params: Whole tables [num_slots, ...].
      slots: The chosen rows of each leaf, all different; ids of num_slots or more
        stand for none.

    Returns:
      Updates [top_t, ...] to add to the chosen rows, and the state, of which only
      those rows have changed.
    """

    def take(leaf, slots):
        return leaf.at[slots].get(mode="fill", fill_value=0)

    def put(new, leaf, slots):
        return leaf.at[slots].set(
            new.astype(leaf.dtype), mode="drop", unique_indices=True
        )

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
        return jax.tree.map(
            lambda is_row, leaf, *rest: function(leaf, *rest) if is_row else leaf,
            is_row,
            *trees,
        )

    updates, rows = inner.update(
        row_grads,
        on_rows(take, state, slots_of),
        jax.tree.map(take, params, slots),
        **extra_args,
    )
    state = on_rows(put, rows, state, slots_of)
    return updates, state


def write_rows(params: PyTree, updates: PyTree, slots: PyTree) -> PyTree:
    """Adds updates [top_t, ...] to the chosen rows; every other row keeps its bits."""

    def add(leaf, update, slots):
        rows = leaf.at[slots].get(mode="fill", fill_value=0)
        rows = (rows + update).astype(leaf.dtype)
        return leaf.at[slots].set(rows, mode="drop", unique_indices=True)

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

        rows, state = update_rows(
            inner,
            jax.tree.map(to_rows, updates, params),
            state,
            params,
            jax.tree.map(lambda _: slots, params),
            **extra_args,
        )
        return jax.tree.map(to_given_form, rows, updates, params), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
