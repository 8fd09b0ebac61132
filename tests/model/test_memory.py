import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from smf_jax.kernels.table_rows import selected_rows_gradient
from smf_jax.model.memory import (
    MemoryLayer,
    Reads,
    balance_loss,
    init_values,
    weights_on_slots,
    zero_perturbations,
)
from smf_jax.sharding import ONE_DEVICE
from tests.reference import memory as reference
from tests.tiny import (
    NUM_SLOTS,
    VALUE_DIM,
    call,
    fill,
    memory_config,
    named,
)

BATCH, SEQ, DIM = 2, 9, 12
CONFIG = memory_config()
SWITCHES = [  # query_norm, key_norm, relevance_gate
    (True, False, False),
    (False, False, True),
    (False, True, False),
    (True, True, True),
]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X, VALUES = normal(0, BATCH, SEQ, DIM), normal(1, NUM_SLOTS, VALUE_DIM)


def make_layer(**changes):
    config = dataclasses.replace(CONFIG, **changes)
    return fill(lambda: MemoryLayer(config, DIM, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(("query_norm", "key_norm", "relevance_gate"), SWITCHES)
def test_the_layer_is_that_of_the_formula(query_norm, key_norm, relevance_gate):
    layer = make_layer(
        query_norm=query_norm, key_norm=key_norm, relevance_gate=relevance_gate
    )
    want, want_slots = reference.memory(
        X, VALUES, named(layer), CONFIG.num_heads, CONFIG.top_k
    )

    got, reads = call(layer, X, VALUES)

    slots = reads.slots.reshape(BATCH, SEQ, CONFIG.num_heads, CONFIG.top_k)
    np.testing.assert_array_equal(slots, want_slots)
    # float32 sums of a few dozen products of size 1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "values", "says"),
    [
        (X[..., :-1], VALUES, "x has shape [2, 9, 11], but"),
        (X[0], VALUES, "[batch, seq, 12]"),
        (X, VALUES[:, :-1], "values has shape [25, 6], but"),
        (X, VALUES.T, "made for [25, 7]"),
    ],
)
def test_arrays_of_other_shapes_are_refused_in_one_line(monkeypatch, x, values, says):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users

    with pytest.raises(ValueError, match="this memory layer was made for") as caught:
        make_layer()(x, values)

    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_queries_of_another_width_are_refused():
    with pytest.raises(ValueError, match="x has shape"):
        make_layer().rank(X[..., :-1])


def test_a_perturbation_of_zeros_changes_nothing():
    layer = make_layer()
    (perturbation,) = zero_perturbations(CONFIG, BATCH, SEQ)
    want, _ = call(layer, X, VALUES)

    got, _ = call(layer, X, VALUES, perturbation)

    # Another program for the same sums.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_the_gradient_of_a_perturbation_gives_that_of_every_row():
    layer, weights = make_layer(), normal(3, BATCH, SEQ, DIM)
    (perturbation,) = zero_perturbations(CONFIG, BATCH, SEQ)

    def loss(values, perturbation):
        out, reads = layer(X, values, perturbation)
        return (out * weights).sum(), reads

    grad = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (want, cotangent), reads = grad(VALUES, perturbation)

    all_slots = jnp.arange(NUM_SLOTS)
    got = selected_rows_gradient(ONE_DEVICE, cotangent, *reads, all_slots, NUM_SLOTS)

    # float32 sums over the tokens, in another order
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_there_is_one_perturbation_for_each_memory_layer():
    perturbations = zero_perturbations(memory_config(layers=(0, 2, 3)), BATCH, SEQ)

    assert [leaf.shape for leaf in perturbations] == [(BATCH, SEQ, VALUE_DIM)] * 3


def test_rows_of_a_new_table_have_a_norm_of_about_one():
    config = memory_config(num_keys=40, value_dim=50)

    norms = np.linalg.norm(init_values(config, rngs=nnx.Rngs(0))[...], axis=1)

    # Norms of 1600 rows spread by 0.1; their mean by 0.0025.
    assert norms.shape == (1600,)
    assert norms.mean() == pytest.approx(1, abs=0.02)


def reads_of(*slots):
    """Returns reads of one row of tokens, each with all its weight on one slot."""
    slots = jnp.asarray(slots, jnp.int32)[None, :, None]
    return Reads(slots, jnp.ones(slots.shape))


def unevenness(*reads, is_token=None, **changes):
    seq = reads[0].slots.shape[1]
    is_token = jnp.ones((1, seq), bool) if is_token is None else jnp.asarray([is_token])
    return float(
        balance_loss(weights_on_slots(memory_config(**changes), reads, is_token))
    )


def test_reads_of_every_slot_alike_are_perfectly_even():
    assert unevenness(reads_of(*range(NUM_SLOTS))) == pytest.approx(0, abs=1e-6)


def test_reads_of_one_slot_alone_are_as_uneven_as_can_be():
    assert unevenness(reads_of(7, 7, 7)) == pytest.approx(np.log(NUM_SLOTS))


def test_padding_does_not_count_as_uneven():
    want = unevenness(reads_of(3, 4, 4))

    got = unevenness(reads_of(3, 4, 4, 9), is_token=[True, True, True, False])

    assert got == pytest.approx(want)


@pytest.mark.parametrize(("share_values", "slots"), [(True, 20), (False, 10)])
def test_layers_that_share_a_table_are_even_together(share_values, slots):
    halves = reads_of(*range(10)), reads_of(*range(10, 20))
    want = np.log(NUM_SLOTS / slots)

    got = unevenness(*halves, layers=(0, 1), share_values=share_values)

    assert got == pytest.approx(want, rel=1e-5)


def test_evening_out_takes_weight_from_the_slot_that_others_read():
    slots = jnp.asarray([[[1, 2], [1, 3], [1, 4]]], jnp.int32)
    weights = jnp.full(slots.shape, 0.5)

    slope = jax.grad(
        lambda weights: balance_loss(
            weights_on_slots(
                memory_config(), (Reads(slots, weights),), jnp.ones((1, 3), bool)
            )
        )
    )(weights)

    assert (slope[..., 0] > slope[..., 1]).all()


def test_a_relevance_gate_starts_half_open_for_every_token():
    config = dataclasses.replace(CONFIG, relevance_gate=True)
    gated = MemoryLayer(config, DIM, rngs=nnx.Rngs(0))
    plain = MemoryLayer(CONFIG, DIM, rngs=nnx.Rngs(0))

    got, want = call(gated, X, VALUES)[0], call(plain, X, VALUES)[0]

    np.testing.assert_allclose(got, want / 2, rtol=1e-6)  # float32
