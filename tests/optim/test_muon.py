import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

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


def optax_muon(learning_rate):
    """Returns optax's own Muon, one matrix after the other."""

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


def steps(tx, count):
    """Yields the parameters and the momenta after each step."""
    params = draw(0)
    state, update = tx.init(params), jax.jit(tx.update)
    for number in range(count):
        updates, state = update(draw(1 + number), state, params)
        params = optax.apply_updates(params, updates)
        yield params, [mu for _, mu in optax.tree.get_all_with_path(state, "mu")]


def test_matrices_that_are_stacked_move_as_each_would_alone():
    rate = optax.linear_schedule(RATE, RATE / 10, 5)
    stacked, alone = muon(rate, DECAY, decays, B2), optax_muon(rate)

    for got, want in zip(steps(stacked, 4), steps(alone, 4), strict=True):
        assert jax.tree.structure(got) == jax.tree.structure(want)
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            # In a stack products are summed in another order; numbers are about 1.
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)

    start, end = jax.tree.leaves(draw(0)), jax.tree.leaves(got[0])
    assert min(abs(a - b).max() for a, b in zip(start, end, strict=True)) > 0.01


def test_layers_of_one_shape_are_computed_together():
    tx, params = muon(optax.constant_schedule(RATE), DECAY, decays, B2), draw(0)

    program = str(jax.make_jaxpr(tx.update)(draw(1), tx.init(params), params))

    # Three products a round: of two queries, one other, gates and downs.
    assert program.count("dot_general") == 4 * 3


def test_without_maps_everything_is_left_to_adam():
    params = {"values": {0: jnp.ones((3, 2))}}
    tx = muon(optax.constant_schedule(RATE), DECAY, decays, B2)
    adam = optax.nadam(RATE, b2=B2)

    updates, _ = tx.update(params, tx.init(params), params)

    want, _ = adam.update(params, adam.init(params), params)
    np.testing.assert_array_equal(updates["values"][0], want["values"][0])
