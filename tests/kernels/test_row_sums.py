import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smf_jax.kernels import row_sums
from smf_jax.kernels.row_sums import TOKENS_PER_BLOCK, selected_rows_gradient
from tests.reference import row_sums as reference

weighted_rows = functools.partial(
    row_sums.weighted_rows, platform=jax.default_backend()
)
NUM_SLOTS, READS, VALUE_DIM = 7, 4, 5  # more reads than slots: slots repeat
# Tokens: fewer than a block, one block, two and a part; with one and with two axes.
BATCHES = [(3,), (TOKENS_PER_BLOCK,), (2 * TOKENS_PER_BLOCK + 5,), (2, 11)]
by_batch = pytest.mark.parametrize("batch", BATCHES, ids=str)
# float32 sums of up to a hundred products of size 1
TOLERANCE = {"rtol": 0, "atol": 2e-5}


def make_reads(batch, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(NUM_SLOTS, VALUE_DIM)).astype(np.float32)
    slots = rng.integers(0, NUM_SLOTS, (*batch, READS)).astype(np.int32)
    weights = rng.normal(size=(*batch, READS)).astype(np.float32)
    cotangent = rng.normal(size=(*batch, VALUE_DIM)).astype(np.float32)
    return [jnp.asarray(array) for array in (values, slots, weights, cotangent)]


def gradients(values, slots, weights, cotangent):
    """Returns the gradients of sum(cotangent * weighted_rows): values', weights'."""

    def total(values, weights):
        return (weighted_rows(values, slots, weights) * cotangent).sum()

    return jax.jit(jax.grad(total, argnums=(0, 1)))(values, weights)


@by_batch
def test_a_token_gets_the_weighted_sum_of_its_rows(batch):
    values, slots, weights, _ = make_reads(batch)
    want = reference.weighted_rows(values, slots, weights)

    got = jax.jit(weighted_rows)(values, slots, weights)

    np.testing.assert_allclose(got, want, **TOLERANCE)


@by_batch
def test_a_row_gets_the_gradient_of_every_token_that_read_it(batch):
    values, slots, weights, cotangent = make_reads(batch)
    want = reference.values_gradient(cotangent, slots, weights, NUM_SLOTS)

    got, _ = gradients(values, slots, weights, cotangent)

    np.testing.assert_allclose(got, want, **TOLERANCE)


@by_batch
def test_a_weight_gets_the_gradient_of_its_row(batch):
    values, slots, weights, cotangent = make_reads(batch)
    want = reference.weights_gradient(cotangent, slots, values)

    _, got = gradients(values, slots, weights, cotangent)

    np.testing.assert_allclose(got, want, **TOLERANCE)


def test_a_slot_that_a_token_reads_twice_counts_twice():
    values = jnp.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    slots, weights = jnp.array([[1, 1]]), jnp.array([[0.5, 2.0]])

    out = weighted_rows(values, slots, weights)
    gradient, _ = gradients(values, slots, weights, jnp.ones((1, 3)))

    assert out.tolist() == [[25.0, 50.0, 75.0]]
    assert gradient.tolist() == [[0.0, 0.0, 0.0], [2.5, 2.5, 2.5]]


def test_filling_the_last_block_leaves_slot_0_without_a_gradient():
    values, slots, weights, cotangent = make_reads((TOKENS_PER_BLOCK + 1,))
    slots = jnp.maximum(slots, 1)

    gradient, _ = gradients(values, slots, weights, cotangent)

    assert not np.asarray(gradient[0]).any()


# 1030 tokens are more than one block of the product that sums the chosen rows.
@pytest.mark.parametrize("batch", [*BATCHES, (1030,)], ids=str)
def test_the_gradient_of_chosen_rows_is_those_rows_of_the_dense_one(batch):
    values, slots, weights, cotangent = make_reads(batch)
    chosen = jnp.array([5, 0, 3])
    want = gradients(values, slots, weights, cotangent)[0][chosen]

    got = jax.jit(selected_rows_gradient, static_argnums=4)(
        cotangent, slots, weights, chosen, NUM_SLOTS
    )

    # float32 sums of up to 600 products of size 1, in another order
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_an_id_past_the_table_has_a_gradient_of_zero():
    _, slots, weights, cotangent = make_reads((9,))
    chosen = jnp.array([NUM_SLOTS, 2, NUM_SLOTS + 1])

    got = selected_rows_gradient(cotangent, slots, weights, chosen, NUM_SLOTS)

    assert np.asarray(got).any(axis=1).tolist() == [False, True, False]


def test_many_reads_of_a_bfloat16_table_are_summed_in_float32():
    # Added one by one in bfloat16, ones stop growing at 256.
    values = jnp.ones((2, 3), jnp.bfloat16)
    slots, weights = jnp.zeros((1, 300), int), jnp.ones((1, 300))

    out = weighted_rows(values, slots, weights)

    assert out.tolist() == [[300.0, 300.0, 300.0]]


def test_many_tokens_add_to_a_bfloat16_row_in_float32():
    values = jnp.zeros((2, 3), jnp.bfloat16)
    slots, weights = jnp.ones((600, 1), int), jnp.ones((600, 1))

    gradient, _ = gradients(values, slots, weights, jnp.ones((600, 3), jnp.bfloat16))

    assert gradient.dtype == jnp.bfloat16
    assert gradient.tolist() == [[0.0, 0.0, 0.0], [600.0, 600.0, 600.0]]


def test_a_weight_on_a_bfloat16_row_gets_its_gradient_in_float32():
    # 256 + 1 is 256 in bfloat16, as a sum and as a result.
    values = jnp.array([[256.0, 1.0, 0.0]], jnp.bfloat16)
    slots, weights = jnp.zeros((1, 1), int), jnp.ones((1, 1))

    _, gradient = gradients(values, slots, weights, jnp.ones((1, 3), jnp.bfloat16))

    assert gradient.tolist() == [[257.0]]


def test_the_chosen_rows_of_a_bfloat16_cotangent_are_summed_in_float32():
    slots, weights = jnp.ones((600, 1), int), jnp.ones((600, 1))
    cotangent = jnp.ones((600, 3), jnp.bfloat16)

    got = selected_rows_gradient(cotangent, slots, weights, jnp.array([1]), 2)

    assert got.dtype == jnp.float32
    assert got.tolist() == [[600.0, 600.0, 600.0]]
