import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from smf_jax.slots.select import (
    SCORERS,
    all_read,
    contrastive,
    count_reads,
    idf,
    kl,
    random,
    tf,
    tfidf,
    top_slots,
)
from tests.reference import tfidf as reference

NUM_SLOTS, NUM_DOCUMENTS = 9, 12
COUNTS = jnp.array([3, 0, 1, 7, 0, 2, 2, 0, 5])
FREQUENCY = jnp.array([0, 0, 12, 11, 12, 3, 4, 6, 12])
SCORES = SCORERS | {
    "contrastive": functools.partial(contrastive, rarity=3.0, contrast=1.5)
}
every_score = pytest.mark.parametrize("score", SCORES.values(), ids=SCORES.keys())
FACTS = (jnp.array([1, 0, 3, 1, 7, 2, 1, 0, 7]), 7)  # that read each slot, of 7


def numbers(most):
    return arrays(np.int32, NUM_SLOTS, elements=st.integers(0, most)).map(jnp.asarray)


# Slots that none, one, half and all of the 1000 documents read.
@pytest.mark.parametrize(
    ("frequency", "want"), [(0, 6.909), (1, 6.216), (500, 0.692), (1000, 0.0)]
)
def test_the_idf_of_1000_documents_is_that_of_the_paper(frequency, want):
    got = tfidf(jnp.array([1]), jnp.array([frequency]), 1000)

    assert got.tolist() == [pytest.approx(want, abs=5e-4)]  # the paper's digits


@given(numbers(50), numbers(NUM_DOCUMENTS))
def test_tfidf_is_the_share_of_reads_times_the_log_of_rarity(counts, frequency):
    want = reference.tfidf(counts.tolist(), frequency.tolist(), NUM_DOCUMENTS)

    got = tfidf(counts, frequency, NUM_DOCUMENTS)

    # a float32 logarithm of at most 13 and two roundings
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


@given(numbers(50), numbers(NUM_DOCUMENTS))
def test_kl_is_the_terms_above_zero_of_the_divergence(counts, frequency):
    want = reference.kl(counts.tolist(), frequency.tolist())

    got = kl(counts, frequency, NUM_DOCUMENTS)

    # float32: a logarithm near 1 loses all but the absolute size of an ulp
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@given(numbers(50), numbers(NUM_DOCUMENTS), numbers(7))
def test_contrastive_is_the_share_of_reads_times_powers_of_both_rarities(
    counts, frequency, fact_frequency
):
    want = reference.contrastive(
        counts.tolist(),
        frequency.tolist(),
        NUM_DOCUMENTS,
        fact_frequency.tolist(),
        7,
        rarity=3.0,
        contrast=1.5,
    )

    args = (counts, frequency, NUM_DOCUMENTS, fact_frequency, 7)
    got = contrastive(*args, rarity=3.0, contrast=1.5)

    # float32 logarithms, and powers of them
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)


def test_contrastive_equals_tfidf_for_slots_of_one_fact_and_is_zero_for_those_of_all():
    counts, frequency = jnp.array([3, 3, 2]), jnp.array([1, 1, 0])

    got = contrastive(
        counts, frequency, 9, jnp.array([1, 6, 6]), 6, rarity=1.0, contrast=2.0
    )

    want = tfidf(counts, frequency, 9)
    assert got.tolist() == [pytest.approx(float(want[0]), rel=1e-6), 0, 0]


def test_a_single_fact_is_not_contrasted_with_itself():
    counts, frequency = jnp.array([3, 1]), jnp.array([1, 0])

    got = contrastive(
        counts, frequency, 9, jnp.array([1, 1]), 1, rarity=1.0, contrast=1.5
    )

    np.testing.assert_array_equal(got, tfidf(counts, frequency, 9))


@every_score
def test_a_slot_that_was_not_read_scores_zero(score):
    scores = score(COUNTS, FREQUENCY, NUM_DOCUMENTS, *FACTS)

    assert np.asarray(scores)[np.asarray(COUNTS) == 0].tolist() == [0, 0, 0]


@every_score
def test_no_reads_at_all_score_zero_everywhere(score):
    scores = score(jnp.zeros(NUM_SLOTS, int), FREQUENCY, NUM_DOCUMENTS, *FACTS)

    assert scores.tolist() == [0] * NUM_SLOTS


def test_tf_and_idf_are_the_factors_of_tfidf():
    counts, frequency = jnp.array([1, 90]), jnp.array([3, 4])

    shares = tf(counts, frequency, NUM_DOCUMENTS)
    rarity = idf(counts, frequency, NUM_DOCUMENTS)

    np.testing.assert_allclose(shares, [1 / 91, 90 / 91], rtol=1e-6)  # float32
    want = [math.log(13 / 4), math.log(13 / 5)]
    np.testing.assert_allclose(rarity, want, rtol=1e-6)


def test_random_ranks_all_slots_that_were_read_and_only_those():
    slots = top_slots(random(COUNTS, FREQUENCY, NUM_DOCUMENTS), NUM_SLOTS)

    assert {slot for slot in slots.tolist() if slot < NUM_SLOTS} == {0, 2, 3, 5, 6, 8}


def test_random_draws_the_same_for_the_same_counts():
    want = random(COUNTS, FREQUENCY, NUM_DOCUMENTS)

    got = jax.jit(random)(COUNTS, jnp.zeros_like(FREQUENCY), 3)

    np.testing.assert_array_equal(got, want)


def test_random_draws_anew_for_other_counts():
    draws = [
        random(COUNTS.at[0].add(more), FREQUENCY, NUM_DOCUMENTS) for more in range(4)
    ]

    assert len({tuple(top_slots(draw, 6).tolist()) for draw in draws}) > 1


def test_all_scores_what_was_read_alike():
    got = all_read(COUNTS, FREQUENCY, NUM_DOCUMENTS)

    assert got.tolist() == [1, 0, 1, 1, 0, 1, 1, 0, 1]


def test_top_slots_come_best_first_and_ties_go_to_the_lower_slot():
    scores = jnp.array([0.5, 2.0, 0.5, 3.0, 2.0])

    assert top_slots(scores, 4).tolist() == [3, 1, 4, 0]


def test_a_slot_that_scores_zero_is_never_selected():
    scores = jnp.array([0.0, 2.0, 0.0, 3.0, 0.0])

    slots = top_slots(scores, 5).tolist()

    assert slots[:2] == [3, 1]
    assert min(slots[2:]) >= len(scores)
    assert len(set(slots)) == 5


@given(numbers(3), numbers(NUM_DOCUMENTS))
def test_the_selected_slots_are_those_of_a_full_sort(counts, frequency):
    want = reference.top_slots(tf(counts, frequency, NUM_DOCUMENTS).tolist(), 5)

    slots = top_slots(tf(counts, frequency, NUM_DOCUMENTS), 5).tolist()

    assert [slot for slot in slots if slot < NUM_SLOTS] == want


@given(
    arrays(np.int32, (2, 5, 3), elements=st.integers(0, NUM_SLOTS - 1)),
    arrays(bool, (2, 5)),
)
def test_counts_are_those_of_a_loop_over_tokens(slots, is_token):
    want = reference.count_reads(slots, is_token, NUM_SLOTS)

    got = count_reads(jnp.asarray(slots), jnp.asarray(is_token), NUM_SLOTS)

    np.testing.assert_array_equal(got, want)


def test_more_slots_than_there_are_cannot_be_selected():
    with pytest.raises(ValueError, match="top_t=6 exceeds the 5 slots"):
        top_slots(jnp.ones(5), 6)
