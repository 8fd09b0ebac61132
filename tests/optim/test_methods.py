import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from smf_jax.config import OptimConfig
from smf_jax.model.lora import LoRAParam
from smf_jax.model.memory import MemoryValues
from smf_jax.optim.methods import make_method, schedule
from smf_jax.slots.select import kl, tfidf

PARAMS = {"matrix": jnp.full((2, 3), 8.0), "vector": jnp.full(5, 8.0)}


def rates(steps, **config):
    rate = schedule(OptimConfig(optimizer="sgd", learning_rate=8.0, **config), 10)
    return [float(rate(step)) for step in steps]


def one_update(config, grads, params, **rate):
    tx = make_method(config, steps=10, **rate).tx
    return jax.jit(tx.update)(grads, tx.init(params), params)[0]


def test_warmup_starts_above_zero_and_ends_at_the_peak():
    assert rates(range(6), warmup_steps=4) == [2, 4, 6, 8, 8, 8]


def test_a_warmup_of_one_step_is_the_peak_at_once():
    assert rates(range(3), warmup_steps=1) == [8, 8, 8]


@pytest.mark.parametrize(
    ("name", "want"),
    [("constant", [8, 8, 8]), ("linear", [8, 5, 2]), ("cosine", [8, 5, 2])],
)
def test_a_rate_falls_to_its_final_fraction(name, want):
    got = rates([0, 5, 10], schedule=name, end_lr_fraction=0.25)

    np.testing.assert_allclose(got, want, rtol=1e-6)  # float32


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_rate_with_warmup_still_ends_with_the_run(name):
    got = rates([3, 4, 7, 10], schedule=name, end_lr_fraction=0.25, warmup_steps=4)

    np.testing.assert_allclose(got, [8, 8, 5, 2], rtol=1e-6)  # float32


def test_decay_pulls_matrices_and_leaves_vectors_alone():
    config = OptimConfig(optimizer="adamw", learning_rate=0.5, weight_decay=0.25)
    zeros = {"matrix": jnp.zeros((2, 3)), "vector": jnp.zeros(5)}

    updates = one_update(config, zeros, PARAMS)

    np.testing.assert_array_equal(updates["matrix"], np.full((2, 3), -1.0))
    np.testing.assert_array_equal(updates["vector"], np.zeros(5))


@pytest.mark.parametrize(
    ("method", "rule", "moved"),
    [("full", "adamw", 0.0), ("full", "muon", 0.0), ("smf", "adamw", -1.0)],
)
def test_tables_decay_only_where_rows_are_selected(method, rule, moved):
    config = OptimConfig(
        method=method, optimizer=rule, learning_rate=0.5, weight_decay=0.25
    )
    tables = {"values": {0: jnp.full((2, 3), 8.0)}}

    updates = one_update(config, jax.tree.map(jnp.zeros_like, tables), tables)

    np.testing.assert_array_equal(updates["values"][0], np.full((2, 3), moved))


MUON = OptimConfig(optimizer="muon", learning_rate=0.5)


def test_muon_turns_matrices_that_map_vectors():
    params = {"layer": {"kernel": jnp.array([[2.0, 1.0], [1.0, 2.0]])}}

    updates = one_update(MUON, params, params)

    # The nearest rotation is the identity, which Muon meets to about a third.
    got = np.asarray(updates["layer"]["kernel"])
    assert (np.diag(got) < -0.25).all()
    assert (np.abs(got[[0, 1], [1, 0]]) < 0.1).all()


def test_muon_leaves_tables_that_are_looked_up_to_adam():
    params = {"values": jnp.zeros((3, 2))}
    gradient = {"values": jnp.zeros((3, 2)).at[1].set(jnp.array([7.0, -0.1]))}

    updates = one_update(MUON, gradient, params)

    # Adam's first step is of one size, however large the gradient, where there is one.
    got = np.asarray(updates["values"])
    assert np.sign(got).tolist() == [[0, 0], [-1, 1], [0, 0]]
    assert got[1, 0] == pytest.approx(-got[1, 1], rel=1e-5)  # Adam's epsilon


@pytest.mark.parametrize(
    ("method", "trainable", "score"),
    [
        ("full", nnx.Param, None),
        ("lora", LoRAParam, None),
        ("smf", MemoryValues, tfidf),
    ],
)
def test_a_method_trains_its_own_type_of_parameters(method, trainable, score):
    got = make_method(OptimConfig(method=method), steps=10)

    assert (got.trainable, got.score) == (trainable, score)


def test_smf_takes_its_selection_from_the_configuration():
    got = make_method(OptimConfig(method="smf", select="kl", top_t=3), steps=10)

    assert (got.score, got.top_t) == (kl, 3)


def test_a_method_takes_its_rate_from_the_configuration():
    config = OptimConfig(optimizer="sgd", learning_rate=2.0, schedule="linear")
    tx = make_method(config, steps=4).tx
    state, got, update = tx.init(PARAMS), [], jax.jit(tx.update)
    for _ in range(4):
        updates, state = update(PARAMS, state, PARAMS)
        got.append(float(optax.tree.norm(updates) / optax.tree.norm(PARAMS)))

    np.testing.assert_allclose(got, [2.0, 1.5, 1.0, 0.5], rtol=1e-6)  # float32


def test_tables_have_a_rate_of_their_own():
    params = {"values": {0: jnp.ones((3, 2))}, "blocks": {"values": jnp.ones(4)}}
    config = OptimConfig(optimizer="sgd", learning_rate=2.0)

    plain = one_update(config, params, params)
    scaled = one_update(config, params, params, values_lr_scale=3.0)

    np.testing.assert_array_equal(plain["values"][0], -2)
    np.testing.assert_array_equal(scaled["values"][0], -6)
    np.testing.assert_array_equal(scaled["blocks"]["values"], -2)
