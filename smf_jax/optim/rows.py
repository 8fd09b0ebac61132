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
    """An optimizer's update of selected rows."""

    updates: PyTree  # [top_t, ...] of each leaf
    rows: PyTree  # [top_t, ...] of each leaf: the rows with the updates added
    state: optax.OptState  # changed in the selected rows alone
    slots: PyTree  # to write the rows to: the selected ones, or padding
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

    `inner` sees only those rows, so its weight decay and moments touch no others. State
    shared by all rows, such as Adam's step count, advances every step, so a row first
    selected late gets little bias correction.

    `row_grads` are [top_t, ...] of each leaf of `params`, tables [num_slots, ...], and
    `slots` its selected rows, all different; ids of num_slots or more are padding.
    Nothing changes unless `allowed` and all new rows are finite; None skips both tests.
    """
    inner = optax.with_extra_args_support(inner)
    take = functools.partial(take_rows, layout)
    before = jax.tree.map(take, params, slots)
    row_state = optax.tree.map_params(inner, take, state, slots)
    updates, row_state = inner.update(row_grads, row_state, before, **extra_args)
    rows = optax.apply_updates(before, updates)
    if allowed is not None:
        allowed &= all_finite(rows)
        slots = jax.tree.map(functools.partial(_slots_if, allowed), slots, params)
    # False for state shared by all rows
    slots_of = optax.tree.map_params(
        inner,
        lambda _, slots: slots,
        state,
        slots,
        transform_non_params=lambda _: False,
    )

    def put(slots, new, old):
        if slots is False:
            return new if allowed is None else jnp.where(allowed, new, old)
        return put_rows(layout, old, slots, new)

    state = jax.tree.map(put, slots_of, row_state, state)
    return RowUpdate(updates, rows, state, slots, allowed)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Returns whether all elements are finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _slots_if(allowed, slots, table):
    # Padding writes nothing; a choice between two tables would copy them.
    padding = len(table) + jnp.arange(len(slots), dtype=slots.dtype)
    return jnp.where(allowed, slots, padding)


def only_rows(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Confines an optimizer to the rows selected at each step, by `update_rows`.

    It sees the selected rows as if they were the table: clipping, LAMB or LARS measure
    those alone. Its state must be rows like the table's, or shared by all: so it is for
    SGD, Adam and most others of optax. Refused are `adafactor`, `flatten`, `lbfgs`,
    `novograd`, `sm3`, `zero_nans`, `contrib.galore`, `contrib.muon`, `contrib.sophia`,
    masked tables, and line searches.

    `update(updates, state, params, slots=...)` takes the selected rows, all different,
    as one array for every leaf; ids past the last row are padding. All other rows keep
    their optimizer state, bit for bit, and get an update of 0. A leaf of `updates` is
    either the dense gradient, with the shape of its parameter, or compact, with one row
    for each of `slots`; its update has the same form. (Adding a dense 0 turns -0.0 into
    0.0; `table.at[slots].add(update, mode="drop")` adds a compact update.)

    >>> tx, table = only_rows(optax.sgd(0.5)), jnp.ones((3, 2))
    >>> slots = jnp.array([2])
    >>> updates, _ = tx.update(jnp.ones((3, 2)), tx.init(table), table, slots=slots)
    >>> optax.apply_updates(table, updates).tolist()
    [[1.0, 1.0], [1.0, 1.0], [0.5, 0.5]]

    Raises:
      ValueError: Raised by `init`, if the state is of another kind; by `update`, if it
        has no `params`, or gets a function of them, as a line search does.
    """

    def init(params: optax.Params) -> optax.OptState:
        _require_row_state(inner, params)
        return inner.init(params)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        slots: Int[Array, " top_t"],
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError("only_rows needs params, to tell rows from tables")
        functions = [name for name, value in extra_args.items() if callable(value)]
        if functions:
            raise ValueError(
                f"only_rows is not for an optimizer that calls {', '.join(functions)}: "
                "it would get selected rows in place of tables"
            )

        def to_rows(leaf, param):
            is_dense = leaf.shape == param.shape
            return take_rows(ONE_DEVICE, leaf, slots) if is_dense else leaf

        def to_original_form(rows, leaf, param):
            if leaf.shape != param.shape:
                return rows
            return put_rows(ONE_DEVICE, jnp.zeros_like(param), slots, rows)

        row_grads = jax.tree.map(to_rows, updates, params)
        slots_of = jax.tree.map(lambda _: slots, params)
        update = update_rows(inner, row_grads, state, params, slots_of, **extra_args)
        updates = jax.tree.map(to_original_form, update.updates, updates, params)
        return updates, update.state

    return optax.GradientTransformationExtraArgs(init, update)


def _require_row_state(
    inner: optax.GradientTransformation, params: optax.Params
) -> None:
    """Raises `ValueError` unless state is rows like a table's, or shared by all."""

    def add_row(table):
        return jax.ShapeDtypeStruct((len(table) + 1, *table.shape[1:]), table.dtype)

    def is_masked(leaf):
        return isinstance(leaf, optax.MaskedNode)

    state = jax.eval_shape(inner.init, params)
    larger = jax.eval_shape(inner.init, jax.tree.map(add_row, params))
    shapes = {table.shape for table in jax.tree.leaves(params)}
    fits = jax.tree.map(
        # What is shared does not depend on the number of rows.
        lambda leaf, other: leaf.shape == other.shape or leaf.shape in shapes,
        state,
        larger,
    )
    try:
        if all(jax.tree.leaves(fits)):
            fits = optax.tree.map_params(
                inner,
                lambda leaf, table: not is_masked(leaf) and leaf.shape == table.shape,
                state,
                params,
                transform_non_params=lambda leaf: True,
                is_leaf=is_masked,
            )
    except (ValueError, IndexError) as error:
        name = inner.init.__qualname__.partition(".")[0]
        raise ValueError(
            f"only_rows is not for {name}: optax.tree.map_params cannot map its state"
        ) from error
    for path, fit in jax.tree.leaves_with_path(fits):
        if not fit:
            raise ValueError(
                f"only_rows is not for an optimizer with {_describe(state, path)}, "
                "which is neither a row for each row of a table, nor shared by all"
            )


def _describe(state: optax.OptState, path: tuple) -> str:
    """Returns the class, field and shape of an array in an optimizer's state."""
    name = ""
    for key in path:
        if isinstance(key, jax.tree_util.GetAttrKey):
            name = f"{type(state).__name__}.{key.name}"
            state = getattr(state, key.name)
        else:
            state = state[
                key.key if isinstance(key, jax.tree_util.DictKey) else key.idx
            ]
    masked = isinstance(state, optax.MaskedNode)
    return f"a masked {name}" if masked else f"{name} of shape {list(state.shape)}"
