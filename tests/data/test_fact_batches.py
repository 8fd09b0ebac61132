import pytest
from hypothesis import given
from hypothesis import strategies as st

from smf_jax.data.fact_batches import fact_batches, stack_facts
from smf_jax.data.tokenizer import PAD
from tests.data.rows import (
    Counted,
    assert_resumes,
    assert_seeks,
    row,
    rows_of,
    same,
    take,
    texts_of,
)

# Six facts of one text each, known by its first token.
FACTS_OF_ONE = [[row(length)] for length in (1, 2, 3, 4, 5, 9)]
WIDEST = 16


def batches_of(facts, batch_size=2, seed=0, seq_len=WIDEST):
    return fact_batches(stack_facts(facts, seq_len), batch_size, seed)


def first_tokens(batches) -> list[int]:
    return sorted(int(token) for batch in batches for token in batch.tokens[:, 0])


def as_texts(rows) -> list[tuple[int, ...]]:
    return sorted((*row["tokens"].tolist(), int(row["targets"][-1])) for row in rows)


lengths = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1)
seq_lens = st.integers(9, 40)


@given(lengths, seq_lens)
def test_each_fact_has_its_own_texts_uncut_and_no_other(facts, seq_len):
    facts = [[row(length) for length in of_fact] for of_fact in facts]

    for fact, of_fact in zip(stack_facts(facts, seq_len), facts, strict=True):
        assert texts_of(rows_of(fact)) == as_texts(of_fact)
        assert fact.weights.sum() == sum(len(text["tokens"]) for text in of_fact)


@given(lengths, seq_lens)
def test_a_larger_width_never_makes_more_tokens(facts, seq_len):
    facts = [[row(length) for length in of_fact] for of_fact in facts]

    narrow, wide = (stack_facts(facts, width)[0] for width in (9, seq_len))

    assert wide.tokens.size <= narrow.tokens.size
    assert wide.tokens.shape[1] < seq_len + 8


def test_texts_of_one_fact_share_rows():
    # 3 rows of 8 would be 24 tokens, 2 of 16 would be 32, 1 of 24 is as many.
    (fact,) = stack_facts([[row(7), row(8), row(6)]], 64)
    assert fact.tokens.shape == (3, 8)

    (fact,) = stack_facts([[row(5), row(5), row(6)]], 64)
    assert fact.tokens.shape == (1, 16)


def test_an_epoch_has_every_fact_once_in_an_order_of_its_own():
    batches = take(batches_of(FACTS_OF_ONE), 6)

    for epoch in (batches[:3], batches[3:]):
        assert first_tokens(epoch) == [10, 20, 30, 40, 50, 90]
    assert not same(batches[:3], batches[3:])


def test_the_last_batch_of_an_epoch_is_filled_from_the_next():
    batches = take(batches_of(FACTS_OF_ONE, batch_size=4), 3)

    assert {batch.tokens.shape for batch in batches} == {(4, 16)}
    assert first_tokens(batches) == sorted([10, 20, 30, 40, 50, 90] * 2)


def test_the_texts_of_a_fact_are_in_one_batch():
    facts = [[row(1), row(2), row(3)], [row(4), row(5), row(6)], [row(7)] * 3]

    batches = take(batches_of(facts, seq_len=8), 3)

    found = [
        texts_of(rows_of(batch)[start : start + 3])
        for batch in batches
        for start in (0, 3)
    ]
    assert sorted(found) == sorted(2 * [as_texts(of_fact) for of_fact in facts])


def test_a_fact_with_fewer_texts_has_rows_of_padding():
    facts = [[row(7), row(8), row(6)], [row(4)]]

    (batch,) = take(batches_of(facts), 1)

    trained = batch.weights.sum(axis=1).tolist()
    assert trained in ([8, 7, 6, 4, 0, 0], [4, 0, 0, 8, 7, 6])
    assert ((batch.weights > 0) == (batch.segments > 0)).all()
    padding = batch.segments == 0
    assert (batch.tokens[padding] == PAD).all()
    assert (batch.targets[padding] == PAD).all()


@pytest.mark.parametrize(("longest", "want"), [(1, 8), (8, 8), (9, 16)])
def test_rows_are_padded_to_a_multiple_of_8(longest, want):
    (batch,) = take(batches_of([[row(longest)], [row(1)]], seq_len=9), 1)

    assert batch.tokens.shape == batch.weights.shape == (2, want)


def test_a_seed_determines_the_batches():
    def five(seed):
        return take(batches_of(FACTS_OF_ONE, seed=seed), 5)

    assert same(five(0), five(0))
    assert not same(five(0), five(1))


def counted():
    """Returns facts that count how often one is taken, and a maker of batches."""
    facts = Counted(stack_facts([[row(2), row(3)] for _ in range(11)], WIDEST))
    return facts, lambda: fact_batches(facts, batch_size=3, seed=5)


@pytest.mark.parametrize("done", [0, 1, 17])
def test_batches_resume_where_they_were(done):
    assert_resumes(counted()[1], done)


def test_resuming_reads_no_earlier_row():
    assert_seeks(*counted())
