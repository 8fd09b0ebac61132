import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from smf_jax.optim.muon import muon

RATE, DECAY, B2 = 0.1, 0.2, 0.95
SHAPES = {"query": (6, 6), "gate": (4, 8), "down": (8, 4)}


def draw(seed):
    """Returns leaves of three layers of two widths, and of what is no map."""
    keys = iter(jax.random.split(jax.random.key(seed), 30))
    layers = {
        number: {
            name: {"kernel": jax.random.normal(next(keys), shape)}
            for name, shape in SHAPES.items()
        }
        for number in range(3)
    }
    layers[2]["query"]["kernel"] = jax.random.normal(next(keys), (6, 5))
    others = {
        "embedding": jax.random.normal(next(keys), (7, 6)),
        "norm": jax.random.normal(next(keys), (6,)),
        "values": {0: jax.random.normal(next(keys), (9, 4))},
    }
    return {"blocks": layers} | others


def decays(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def theirs(learning_rate):
    """Returns the rule as optax has it, one matrix after the other."""

    def dimensions(path, _):
        is_map = getattr(path[-1], "key", None) == "kernel"
        return optax.contrib.MuonDimensionNumbers() if is_map else None

    return optax.contrib.muon(
        learning_rate,
        weight_decay=DECAY,
        weight_decay_mask=decays,
        adam_b2=B2,
        muon_weight_dimension_numbers=lambda params: jax.tree.map_with_path(
            dimensions, params
        ),
    )


def after_steps(tx, steps):
    params = draw(0)
    state = tx.init(params)
    for step in range(steps):
        updates, state = tx.update(draw(1 + step), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_alike(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    # Sums of products are added in another order in a stack; numbers are about 1.
    for mine, yours in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(mine, yours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 4])
def test_matrices_that_are_stacked_move_as_each_would_alone(steps):
    rate = optax.linear_schedule(RATE, RATE / 10, 5)

    params, state = after_steps(muon(rate, DECAY, decays, B2), steps)

    want, of_theirs = after_steps(theirs(rate), steps)
    assert_alike(params, want)
    moments = [optax.tree.get_all_with_path(of, "mu") for of in (state, of_theirs)]
    mine, yours = ([moment for _, moment in of] for of in moments)
    assert_alike(mine, yours)
    start = jax.tree.leaves(draw(0))
    moved = [
        abs(a - b).max() for a, b in zip(jax.tree.leaves(params), start, strict=True)
    ]
    assert min(moved) > 0.01


def test_layers_of_one_shape_are_computed_together():
    tx, params = muon(optax.constant_schedule(RATE), DECAY, decays, B2), draw(0)

    program = str(jax.make_jaxpr(tx.update)(draw(1), tx.init(params), params))

    # Three products a round: of two queries, one other, gates and downs.
    assert program.count("dot_general") == 4 * 3


def test_without_maps_all_is_left_to_adam():
    params = {"values": {0: jnp.ones((3, 2))}}
    tx = muon(optax.constant_schedule(RATE), DECAY, decays, B2)
    adam = optax.nadam(RATE, b2=B2)

    updates, _ = tx.update(params, tx.init(params), params)

    want, _ = adam.update(params, adam.init(params), params)
    np.testing.assert_array_equal(updates["values"][0], want["values"][0])
