import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from smf_jax.kernels import product_key
from smf_jax.kernels.product_key import (
    ALGORITHMS,
    GROUP_SIZE,
    _largest_by_groups,
    product_key_top_k,
)
from tests.reference import product_key as reference

HEADS, NUM_KEYS, HALF = 3, 5, 4
QUERY, KEYS = (6, HEADS, 2, HALF), (HEADS, 2, NUM_KEYS, HALF)
every_platform = pytest.mark.parametrize("platform", ALGORITHMS)
compiled = jax.jit(product_key_top_k, static_argnums=(2, 3))


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def whole_numbers(shape):
    # Few values, so that scores tie and keys repeat; sums of them are exact.
    return arrays(np.float32, shape, elements=st.integers(-2, 2).map(float))


@every_platform
@given(whole_numbers(QUERY), whole_numbers(KEYS), st.sampled_from([1, 3, NUM_KEYS]))
def test_the_best_slots_are_those_of_a_search_over_all_pairs(
    platform, query, keys, top_k
):
    want_slots, want_scores = reference.top_k(query, keys, top_k)

    got_slots, got_scores = compiled(query, keys, top_k, platform)

    np.testing.assert_array_equal(got_slots, want_slots)
    np.testing.assert_array_equal(got_scores, want_scores)


@pytest.mark.parametrize(("batch", "top_k"), [((), 1), ((2, 1, 7), 3)])
def test_any_batch_axes_give_the_slots_of_a_search_over_all_pairs(batch, top_k):
    query, keys = normal(0, (*batch, HEADS, 2, HALF)), normal(1, KEYS)
    want_slots, want_scores = reference.top_k(query, keys, top_k)

    got_slots, got_scores = compiled(query, keys, top_k)

    np.testing.assert_array_equal(got_slots, want_slots)
    # float32 sums of eight products of size 1
    np.testing.assert_allclose(got_scores, want_scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "chunk", "top_k"), [(1, 2, 3), (7, 2, 3), (6, 6, NUM_KEYS)]
)
def test_scores_carry_the_gradient_of_the_keys_they_select(
    monkeypatch, tokens, chunk, top_k
):
    query, keys = normal(0, (tokens, *QUERY[1:])), normal(1, KEYS)
    cotangent = normal(2, (tokens, HEADS, top_k))
    want_slots, _ = reference.top_k(query, keys, top_k)
    want = reference.score_gradients(query, keys, want_slots, cotangent)
    scores = chunk * HEADS * 2 * NUM_KEYS
    monkeypatch.setattr(product_key, "SCORES_PER_CHUNK", scores)

    def total(query, keys):
        slots, scores = product_key_top_k(query, keys, top_k)
        return (scores * cotangent).sum(), slots

    gradient = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    got, slots = gradient(query, keys)

    np.testing.assert_array_equal(slots, want_slots)
    # float32 sums of up to 30 products of size 1
    np.testing.assert_allclose(got[0], want[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(got[1], want[1], rtol=0, atol=1e-5)


def test_a_tie_goes_to_the_lower_slot_and_not_to_the_better_first_half():
    # Scores of the slots (0, 0), (0, 1), (1, 0), (1, 1) are 1, 0, 2, 1.
    keys = np.array([[[[0.0], [1.0]], [[1.0], [0.0]]]], np.float32)
    query = np.ones((1, 2, 1), np.float32)

    slots, _ = compiled(query, keys, 2)

    assert slots.tolist() == [[2, 0]]


def test_scores_of_bfloat16_keys_are_summed_in_float32():
    # 256 + 1 + 1 + 1 is 256 where every sum is rounded to bfloat16.
    query = jnp.ones((1, 2, 4), jnp.bfloat16)
    keys = jnp.broadcast_to(jnp.array([256, 1, 1, 1], "bfloat16"), (1, 2, 3, 4))

    _, scores = compiled(query, keys, 1)

    assert scores.dtype == jnp.float32
    assert scores.tolist() == [[2 * 259]]


largest_by_groups = jax.jit(_largest_by_groups, static_argnums=1)


@pytest.mark.parametrize("width", [5, 3 * GROUP_SIZE, 3 * GROUP_SIZE + 7])
@given(st.data())
def test_the_largest_scores_by_groups_are_those_of_top_k(width, data):
    rows = data.draw(whole_numbers((4, width)))
    top_k = data.draw(st.sampled_from([3, width]))
    want = jax.lax.top_k(rows, top_k)

    got = largest_by_groups(rows, top_k)

    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


@every_platform
def test_numbers_that_are_not_finite_show_in_scores_of_slots_that_exist(platform):
    query, keys = normal(0, QUERY), normal(1, KEYS)
    rank = functools.partial(compiled, top_k=NUM_KEYS, platform=platform)

    for wrong in (np.nan, np.inf, -np.inf):
        of_query = rank(query.at[0].set(wrong), keys)
        of_key = rank(query, keys.at[:, 0, 2, 0].set(wrong))

        for slots, scores in (of_query, of_key):
            assert set(slots.flatten().tolist()) <= set(range(NUM_KEYS**2))
            assert not np.isfinite(scores[0]).all()
        if np.isnan(wrong):
            assert np.isnan(of_key[1]).all()


def test_no_tokens_have_no_slots():
    slots, scores = compiled(jnp.zeros((0, *QUERY[1:])), normal(1, KEYS), 3)

    assert slots.shape == scores.shape == (0, HEADS, 3)
