"""Rows that were read move as in a dense step, and all others keep their bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smf_jax.config import ComputeConfig, MeshConfig
from smf_jax.kernels import held
from smf_jax.optim import read
from smf_jax.sharding import ONE_DEVICE, make_placement
from tests.tiny import bits

ROWS, WIDTH, STEPS = 24, 4, 4
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.1),
    "scheduled": optax.chain(
        optax.adam(lambda count: 0.1 / (1 + count)), optax.scale(3)
    ),
}
LAYOUTS = {
    "one device": None,
    "columns": MeshConfig(data=2, fsdp=2, model=2, values="columns"),
    "slots": MeshConfig(data=2, fsdp=2, model=2, values="slots"),
    "everywhere": MeshConfig(data=2, fsdp=2, model=2, values="everywhere"),
}
every_optimizer = pytest.mark.parametrize(
    "inner", OPTIMIZERS.values(), ids=OPTIMIZERS.keys()
)


def place(layout: str):
    if LAYOUTS[layout] is None:
        return ONE_DEVICE
    return make_placement(LAYOUTS[layout], ComputeConfig(), None)


def draw(seed: int):
    """Returns which rows a step reads, and the whole gradient."""
    rng = np.random.default_rng(seed)
    is_read = rng.random(ROWS) < 0.4
    gradient = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    return is_read, np.where(is_read[:, None], gradient, 0)


def as_read(is_read, gradient, placement):
    """Returns places and gradients as `read_rows_gradient` has them."""
    of_one = ROWS // placement.ways(*placement.row_axes)
    size = min(of_one, held.ROWS_AT_ONCE["cpu"])
    room = -(-of_one // size) * size
    places, rows = [], []
    for start in range(0, ROWS, of_one):
        there = np.flatnonzero(is_read[start : start + of_one])
        none = of_one + np.arange(room - len(there))
        places.append(np.concatenate([there, none]).astype(np.int32))
        fill = np.zeros((len(none), WIDTH), np.float32)
        rows.append(np.concatenate([gradient[start + there], fill]))
    return (
        placement.put(
            np.concatenate(places), placement.sharding(held.places_spec(placement))
        ),
        placement.put(np.concatenate(rows), placement.sharding(placement.table)),
    )


def draw_table(placement):
    table = np.random.default_rng(9).normal(size=(ROWS, WIDTH)).astype(np.float32)
    return placement.put(table, placement.sharding(placement.table))


def per_row(state):
    return [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (ROWS, WIDTH)]


@every_optimizer
@pytest.mark.parametrize(
    ("layout", "at_once"),
    [("one device", 2), ("columns", 1024), ("slots", 2), ("everywhere", 1024)],
)
def test_read_rows_move_by_the_dense_rule_and_no_other_bit(
    monkeypatch, inner, layout, at_once
):
    monkeypatch.setitem(held.ROWS_AT_ONCE, "cpu", at_once)
    placement = place(layout)
    table = draw_table(placement)
    state = dense_state = jax.jit(inner.init)(table)
    dense = table
    step = jax.jit(functools.partial(read.update_read_rows, inner, placement=placement))

    for seed in range(STEPS):
        is_read, gradient = draw(seed)
        places, rows = as_read(is_read, gradient, placement)
        before = [table, *per_row(state)]
        state, table = step(rows, state, table, places)
        for old, new in zip(before, [table, *per_row(state)], strict=True):
            np.testing.assert_array_equal(bits(new)[~is_read], bits(old)[~is_read])

        # The same program on all rows, of which the read ones are taken: another one
        # may round a product and a sum at once, or each.
        places, rows = as_read(np.ones(ROWS, bool), gradient, placement)
        moved = step(rows, dense_state, dense, places)[::-1]
        dense, dense_state = jax.tree.map(
            lambda new, old, is_read=is_read: (
                np.where(is_read[:, None], new, old) if new.ndim else new
            ),
            moved,
            (dense, dense_state),
        )
        for mine, theirs in zip(
            *map(jax.tree.leaves, ((table, state), (dense, dense_state))), strict=True
        ):
            np.testing.assert_array_equal(bits(mine), bits(theirs))


@every_optimizer
@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_all_rows_are_read_the_step_is_that_of_the_optimizer(inner, layout):
    placement = place(layout)
    table = draw_table(placement)
    state = jax.jit(inner.init)(table)
    want, want_state = jnp.asarray(np.asarray(table)), inner.init(np.asarray(table))
    step = jax.jit(functools.partial(read.update_read_rows, inner, placement=placement))

    for seed in range(STEPS):
        _, gradient = draw(seed)
        places, rows = as_read(np.ones(ROWS, bool), gradient, placement)
        state, table = step(rows, state, table, places)
        updates, want_state = inner.update(jnp.asarray(gradient), want_state, want)
        want = optax.apply_updates(want, updates)

    # Other programs, which round a product and a sum at once, or each
    np.testing.assert_allclose(table, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_rows_share_counts_also_where_none_is_read(layout):
    placement, inner = place(layout), optax.adam(0.1)
    table = draw_table(placement)
    none = as_read(np.zeros(ROWS, bool), np.zeros((ROWS, WIDTH), np.float32), placement)
    state = jax.jit(inner.init)(table)

    new, after = read.update_read_rows(
        inner, none[1], state, table, none[0], placement=placement
    )

    assert int(new[0].count) == 1
    np.testing.assert_array_equal(bits(after), bits(table))
