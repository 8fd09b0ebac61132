import itertools

import jax
import numpy as np
import pytest

from smf_jax.config import ConfigError
from smf_jax.data.batches import (
    Batch,
    Packed,
    drop_long,
    encode_example,
    hold_out,
    pack_corpus,
    packed_batches,
    with_loss_positions,
)
from smf_jax.data.corpus import Corpus, Example
from smf_jax.data.records import Text
from smf_jax.data.tokenizer import EOS, PAD, train_tokenizer
from tests.data.rows import (
    Counted,
    assert_go_on,
    assert_nothing_read_again,
    row,
    same,
    take,
    texts_of,
)

LETTERS = list("abcdefghijklmnopqrstuvwxyz")


@pytest.fixture(scope="module")
def tokenizer():
    # "a" most often, "z" least: their ids are 3 .. 28.
    texts = [" ".join(LETTERS[:count]) for count in range(1, 27)]
    return train_tokenizer(texts, "word", vocab_size=100)


def ids(letters: str) -> list[int]:
    return [3 + LETTERS.index(letter) for letter in letters]


def corpus(examples=(), texts=()) -> Corpus:
    return Corpus(
        known=[],
        new=[],
        new_held_out=[],
        examples=[
            Example(*example, f"fact {place}") for place, example in enumerate(examples)
        ],
        texts=[Text(str(number), text) for number, text in enumerate(texts)],
        notes=[],
        hash="",
    )


def test_each_target_is_the_next_token(tokenizer):
    got = encode_example(tokenizer, Example("a b", "c d", "f"), "all")

    assert got["tokens"].tolist() == ids("abcd")
    assert got["targets"].tolist() == [*ids("bcd"), EOS]


def test_the_loss_is_on_the_answer_and_its_end_alone(tokenizer):
    got = encode_example(tokenizer, Example("a b", "c d", "f"), "answer")

    assert got["targets"].tolist() == [*ids("bcd"), EOS]
    assert got["weights"].tolist() == [0, 1, 1, 1]


def test_the_loss_can_be_on_every_token(tokenizer):
    got = encode_example(tokenizer, Example("a b", "c d", "f"), "all")

    assert got["weights"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("loss_on", ["answer", "all"])
def test_a_text_without_prompt_is_trained_whole(tokenizer, loss_on):
    got = encode_example(tokenizer, Example("", "a b", "f"), loss_on)

    assert got["targets"].tolist() == [*ids("b"), EOS]
    assert got["weights"].tolist() == [1, 1]


# 2, 3, 4 and 5 tokens before the last target; two rows of 7 hold them exactly.
FACTS = [("a", "b"), ("c d", "e"), ("f g", "h i"), ("j k l", "m n")]


@pytest.fixture(scope="module")
def packed(tokenizer):
    rows, none, *_ = pack_corpus(tokenizer, corpus(FACTS), seq_len=7, loss_on="all")
    assert none == []
    return rows


def test_packing_neither_loses_nor_cuts_nor_repeats_a_fact(packed):
    want = [
        (*ids("ab"), EOS),
        (*ids("cde"), EOS),
        (*ids("fghi"), EOS),
        (*ids("jklmn"), EOS),
    ]

    assert texts_of(packed) == want


def test_many_facts_of_three_lengths_are_all_packed(tokenizer):
    # More than the packer holds open at a time, so that it must close rows early.
    pairs = list(itertools.product(LETTERS, LETTERS))
    facts = [one + other for one, other in pairs]
    facts += [one + other + "ab" for one, other in pairs]
    facts += [one + other + "defg" for one, other in pairs]
    examples = [(fact[0], " ".join(fact[1:])) for fact in facts]

    rows, *_ = pack_corpus(tokenizer, corpus(examples), seq_len=9, loss_on="all")

    assert texts_of(rows) == sorted((*ids(fact), EOS) for fact in facts)


def test_packed_rows_are_full_width(packed):
    leaves = jax.tree.leaves([batch._replace(loss_positions=None) for batch in packed])

    assert {leaf.shape for leaf in leaves} == {(7,)}


def test_each_text_of_a_packed_row_counts_its_positions_from_0(packed):
    for batch in packed:
        for segment in range(1, batch.segments.max() + 1):
            positions = batch.positions[batch.segments == segment]
            assert positions.tolist() == list(range(len(positions)))


def test_a_text_of_a_packed_row_is_in_one_piece(packed):
    for batch in packed:
        inside = batch.segments[batch.segments > 0].tolist()
        assert inside == sorted(inside)


def test_packing_keeps_which_tokens_of_a_fact_are_trained(tokenizer):
    content = corpus([("a b", "c d")], ["e f"])

    (fact,), (text,), *_ = pack_corpus(tokenizer, content, seq_len=5, loss_on="answer")

    assert fact.targets.tolist() == [*ids("bcd"), EOS, PAD]
    assert fact.weights.tolist() == [0, 1, 1, 1, 0]
    assert text.targets.tolist() == [*ids("f"), EOS, PAD, PAD, PAD]
    assert text.weights.tolist() == [1, 1, 0, 0, 0]


def test_padding_has_no_segment_and_no_weight(packed):
    for batch in packed:
        assert (batch.weights == (batch.segments > 0)).all()
        assert (batch.tokens[batch.segments == 0] == PAD).all()


def test_a_long_text_is_cut_into_pieces_without_loss(tokenizer):
    # 5 letters, and the end token as the last target.
    _, rows, *_ = pack_corpus(
        tokenizer, corpus(texts=["a b c d e"]), seq_len=2, loss_on="all"
    )

    assert texts_of(rows) == [
        tuple(ids("abc")),
        tuple(ids("cde")),
        (*ids("e"), EOS),
    ]


@pytest.mark.parametrize("letters", ["ab", "abc", "abcd", "abcdefghi"])
def test_each_token_of_a_text_is_a_target_once(tokenizer, letters):
    _, rows, *_ = pack_corpus(
        tokenizer, corpus(texts=[" ".join(letters)]), seq_len=3, loss_on="all"
    )

    targets = [target for batch in rows for target in batch.targets[batch.weights > 0]]
    assert sorted(targets) == sorted([*ids(letters)[1:], EOS])


def test_one_in_a_hundred_may_be_longer_than_the_context_and_is_dropped():
    rows = [row(4)] * 99 + [row(6)]

    kept, dropped = drop_long(rows, seq_len=5)

    assert (len(kept), dropped) == (99, 1)


def test_more_than_one_in_a_hundred_longer_than_the_context_are_refused():
    rows = [row(4)] * 98 + [row(6)] * 2

    with pytest.raises(ConfigError, match=r"2 of 100 .* context of 5"):
        drop_long(rows, seq_len=5)


def test_an_example_as_long_as_the_context_is_kept():
    kept, dropped = drop_long([row(5)], seq_len=5)

    assert (len(kept), dropped) == (1, 0)


def test_facts_longer_than_the_context_cannot_be_pretrained(tokenizer):
    with pytest.raises(ConfigError, match=r"1 of 2 .* context of 3"):
        pack_corpus(
            tokenizer, corpus([("a", "b"), ("a b", "c d")]), seq_len=3, loss_on="all"
        )


def test_places_with_a_loss_are_named_and_none_twice():
    weights = np.array([[0, 0, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], np.float32)
    empty = np.zeros(weights.shape, np.int32)
    batch = Batch(*[empty] * 6)._replace(weights=weights)

    (one, other) = with_loss_positions(
        [batch, batch._replace(weights=weights[:, ::-1])]
    )

    for got in (one, other):
        assert got.loss_positions.shape == (3, 2)
        taken = np.take_along_axis(got.weights, got.loss_positions, 1)
        np.testing.assert_array_equal(taken.sum(1), got.weights.sum(1))
        assert all(len(set(row)) == 2 for row in got.loss_positions.tolist())


@pytest.mark.parametrize("loss_on", ["answer", "all"])
def test_packed_facts_alone_name_their_places_with_a_loss(tokenizer, loss_on):
    content = corpus([("a b c", "d"), ("e f", "g")])

    rows, *_ = pack_corpus(tokenizer, content, seq_len=7, loss_on=loss_on)

    (packed,) = rows
    if loss_on == "all":  # 4 tokens of one fact and 3 of the other
        assert packed.loss_positions is None
    else:
        assert packed.loss_positions.tolist() == np.flatnonzero(packed.weights).tolist()


def test_packed_facts_among_texts_name_no_places(tokenizer):
    content = corpus([("a b c", "d")], ["e f"])

    (fact,), _, *_ = pack_corpus(tokenizer, content, seq_len=7, loss_on="answer")

    assert fact.loss_positions is None


def test_a_batch_may_have_one_packed_row(packed):
    (batch,) = take(packed_batches(packed, [], 0.5, 1, seed=0), 1)

    assert batch.tokens.shape == (1, 7)


@pytest.fixture(scope="module")
def pretrained(tokenizer):
    """Returns a function from a seed to five batches of pretraining."""
    examples = [(one, other) for one in LETTERS[:5] for other in LETTERS]
    texts = [" ".join(LETTERS)] * 4
    facts, others, *_ = pack_corpus(
        tokenizer, corpus(examples, texts), seq_len=8, loss_on="all"
    )
    return lambda seed: take(packed_batches(facts, others, 0.5, 3, seed), 5)


def test_one_seed_gives_the_same_batches_and_another_one_others(pretrained):
    assert same(pretrained(0), pretrained(0))
    assert not same(pretrained(0), pretrained(1))


def test_packed_batches_hold_whole_packed_rows(packed):
    (batch,) = take(packed_batches(packed, [], 0.5, len(packed), seed=0), 1)

    rows = [
        jax.tree.map(lambda leaf, row=row: leaf[row], batch)
        for row in range(len(packed))
    ]
    assert texts_of(rows) == texts_of(packed)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_share_of_facts_is_counted_in_rows(tokenizer, share):
    content = corpus([("a", "b"), ("a c", "b c")], ["x y z"])
    facts, texts, *_ = pack_corpus(tokenizer, content, seq_len=6, loss_on="all")

    batches = take(packed_batches(facts, texts, share, 8, seed=0), 10)

    first = np.concatenate([batch.tokens[:, 0] for batch in batches])
    (a,) = ids("a")
    # The mixing is even, not drawn: one row of 80 may lie on either side.
    assert (first == a).mean() == pytest.approx(share, abs=1 / 80)


def test_without_texts_every_row_is_of_facts(packed):
    batches = take(packed_batches(packed, [], 0.25, 2, seed=0), 3)

    firsts = {batch.tokens[i, 0] for batch in batches for i in range(2)}
    assert firsts <= {packed_row.tokens[0] for packed_row in packed}


def test_a_fact_too_long_for_its_row_is_left_out_and_counted(tokenizer):
    examples = [("a", "b")] * 100 + [("a b", "c d")]

    packed = pack_corpus(tokenizer, corpus(examples), seq_len=3, loss_on="all")

    assert packed.dropped == 1


def counted():
    """Returns rows that count how often one is taken, and a maker of batches."""
    packed = Counted(Batch(*[np.full(4, number)] * 6) for number in range(11))
    return packed, lambda: packed_batches(packed, [], 0.5, batch_size=3, seed=5)


@pytest.mark.parametrize("done", [0, 1, 3, 17])
def test_batches_go_on_where_they_were(done):
    _, make = counted()

    assert_go_on(make, done)


def test_going_on_reads_nothing_of_what_was_read_before():
    assert_nothing_read_again(*counted())


@pytest.mark.parametrize(("share", "every"), [(0.05, 20), (0.5, 2), (0.3, 4)])
def test_every_so_many_rows_are_held_out_of_facts_and_of_texts(share, every):
    facts, texts = list(range(41)), list(range(100, 107))
    rows = {n: Batch(*[np.full(3, n)] * 6) for n in facts + texts}
    packed = Packed([rows[n] for n in facts], [rows[n] for n in texts], 0, [])

    kept, held = hold_out(packed, share)

    def numbers(rows):
        return [int(row.tokens[0]) for row in rows]

    assert numbers(held) == facts[::every] + texts[::every]
    assert sorted(numbers(kept.facts + kept.texts + held)) == facts + texts


def test_something_must_be_left_to_train_on():
    with pytest.raises(ConfigError, match="leaves none to train on"):
        hold_out(Packed([Batch(*[np.zeros(3)] * 6)], [], 0, []), 0.5)
