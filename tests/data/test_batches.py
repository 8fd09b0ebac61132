import itertools

import jax
import numpy as np
import pytest

from smf_jax.config import ConfigError, DataConfig
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
from smf_jax.data.corpus import Corpus
from smf_jax.data.prompts import Example
from smf_jax.data.records import Text
from smf_jax.data.tokenizer import EOS, PAD, train_tokenizer
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

LETTERS = list("abcdefghijklmnopqrstuvwxyz")


@pytest.fixture(scope="module")
def tokenizer():
    # "a" most often, "z" least: their ids are 3 .. 28.
    texts = [" ".join(LETTERS[:count]) for count in range(1, 27)]
    return train_tokenizer(texts, "word", vocab_size=100)


def ids(letters: str) -> list[int]:
    return [3 + LETTERS.index(letter) for letter in letters]


def pack(tokenizer, examples=(), texts=(), seq_len=7, loss_on="all") -> Packed:
    examples = [Example(*pair, f"fact {n}") for n, pair in enumerate(examples)]
    texts = [Text(f"text {n}", text) for n, text in enumerate(texts)]
    corpus = Corpus([], [], examples, texts, [], "")
    return pack_corpus(tokenizer, corpus, DataConfig(seq_len=seq_len, loss_on=loss_on))


@pytest.mark.parametrize(
    ("loss_on", "prompt", "weights"),
    [
        ("answer", "a b", [0, 1, 1, 1]),
        ("all", "a b", [1, 1, 1, 1]),
        ("answer", "", [1, 1]),  # without a prompt all is completion
    ],
)
def test_each_target_is_the_next_token_and_the_loss_where_it_should_be(
    tokenizer, loss_on, prompt, weights
):
    got = encode_example(tokenizer, Example(prompt, "c d", "f"), loss_on)

    sequence = [*ids(prompt.replace(" ", "")), *ids("cd"), EOS]
    assert got["tokens"].tolist() == sequence[:-1]
    assert got["targets"].tolist() == sequence[1:]
    assert got["weights"].tolist() == weights


# 2, 3, 4 and 5 tokens before the last target: three rows of 7.
FACTS = [("a", "b"), ("c d", "e"), ("f g", "h i"), ("j k l", "m n")]


@pytest.fixture(scope="module")
def packed(tokenizer):
    return pack(tokenizer, FACTS).facts


def test_packing_neither_loses_nor_cuts_nor_repeats_a_fact(packed):
    assert texts_of(packed) == [
        (*ids("ab"), EOS),
        (*ids("cde"), EOS),
        (*ids("fghi"), EOS),
        (*ids("jklmn"), EOS),
    ]
    leaves = jax.tree.leaves([batch._replace(loss_positions=None) for batch in packed])
    assert {leaf.shape for leaf in leaves} == {(7,)}


def test_many_facts_of_three_lengths_are_all_packed(tokenizer):
    # More than the packer holds open at a time, so that it must close rows early.
    pairs = list(itertools.product(LETTERS, LETTERS))
    facts = [one + other for one, other in pairs]
    facts += [one + other + "ab" for one, other in pairs]
    facts += [one + other + "defg" for one, other in pairs]
    examples = [(fact[0], " ".join(fact[1:])) for fact in facts]

    rows = pack(tokenizer, examples, seq_len=9).facts

    assert texts_of(rows) == sorted((*ids(fact), EOS) for fact in facts)


def test_packing_keeps_which_tokens_of_a_fact_have_a_loss(tokenizer):
    (fact,), (text,), *_ = pack(tokenizer, [("a b", "c d")], ["e f"], 5, "answer")

    assert fact.targets.tolist() == [*ids("bcd"), EOS, PAD]
    assert fact.weights.tolist() == [0, 1, 1, 1, 0]
    assert text.targets.tolist() == [*ids("f"), EOS, PAD, PAD, PAD]
    assert text.weights.tolist() == [1, 1, 0, 0, 0]


def test_packed_rows_know_their_records(tokenizer):
    rows = pack(tokenizer, [("a", "b"), ("c", "d")], ["e f"], seq_len=2)

    found = {int(row.tokens[0]): row.records.tolist() for row in rows.facts}
    assert found == {ids("a")[0]: [0, 0], ids("c")[0]: [1, 1]}
    assert rows.texts[0].records.tolist() == [2, 2]
    assert rows.records == ["fact 0", "fact 1", "text 0"]


def test_padding_has_no_segment_and_no_weight(packed):
    for batch in packed:
        assert (batch.weights == (batch.segments > 0)).all()
        assert (batch.tokens[batch.segments == 0] == PAD).all()


@pytest.mark.parametrize("letters", ["ab", "abc", "abcd", "abcdefghi"])
def test_a_long_text_is_cut_so_that_each_token_is_a_target_once(tokenizer, letters):
    rows = pack(tokenizer, texts=[" ".join(letters)], seq_len=3).texts

    whole = [*ids(letters), EOS]
    pieces = [tuple(whole[n : n + 4]) for n in range(0, len(letters), 3)]
    assert texts_of(rows) == sorted(pieces)


def test_one_in_a_hundred_may_be_longer_than_the_context_and_is_dropped():
    kept, dropped = drop_long([row(5)] * 99 + [row(6)], seq_len=5)

    assert (len(kept), dropped) == (99, 1)


def test_more_than_one_in_a_hundred_longer_than_the_context_are_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"2 of 100 .* context of 5"):
        drop_long([row(4)] * 98 + [row(6)] * 2, seq_len=5)
    with pytest.raises(ConfigError, match=r"1 of 2 .* context of 3"):
        pack(tokenizer, [("a", "b"), ("a b", "c d")], seq_len=3)


def test_a_fact_too_long_for_a_row_is_dropped_and_counted(tokenizer):
    examples = [("a", "b")] * 100 + [("a b", "c d")]

    assert pack(tokenizer, examples, seq_len=3).dropped == 1


def test_loss_positions_cover_each_target_with_a_loss_once():
    weights = np.array([[0, 0, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], np.float32)
    empty = np.zeros(weights.shape, np.int32)
    batch = Batch(*[empty] * 6)._replace(weights=weights)

    both = with_loss_positions([batch, batch._replace(weights=weights[:, ::-1])])

    for got in both:
        assert got.loss_positions.shape == (3, 2)
        taken = np.take_along_axis(got.weights, got.loss_positions, 1)
        np.testing.assert_array_equal(taken.sum(1), got.weights.sum(1))
        assert all(len(set(row)) == 2 for row in got.loss_positions.tolist())


def test_packed_facts_have_loss_positions_unless_the_loss_is_on_all(tokenizer):
    examples = [("a b c", "d"), ("e f", "g")]  # 4 and 3 tokens, in one row of 7

    (on_answer,) = pack(tokenizer, examples, loss_on="answer").facts
    (on_all,) = pack(tokenizer, examples, loss_on="all").facts
    (with_text,) = pack(tokenizer, examples, ["e f"], loss_on="answer").facts

    expected = np.flatnonzero(on_answer.weights).tolist()
    assert on_answer.loss_positions.tolist() == expected
    assert on_all.loss_positions is with_text.loss_positions is None


@pytest.fixture(scope="module")
def pretrained(tokenizer):
    """Returns a function from a seed to five batches of pretraining."""
    examples = [(one, other) for one in LETTERS[:5] for other in LETTERS]
    rows = pack(tokenizer, examples, [" ".join(LETTERS)] * 4, seq_len=8)
    config = DataConfig(fact_share=0.5, batch_size=3)
    return lambda seed: take(packed_batches(rows, config, seed), 5)


def test_a_seed_determines_the_batches(pretrained):
    assert same(pretrained(0), pretrained(0))
    assert not same(pretrained(0), pretrained(1))


def test_the_largest_seed_has_one_after_it(pretrained):
    assert same(pretrained(2**32), pretrained(0))  # as `smf usage` reads with


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_epoch_of_facts_alone_has_each_packed_row_once(packed, batch_size):
    config = DataConfig(fact_share=0.25, batch_size=batch_size)
    batches = packed_batches(Packed(packed, [], 0, []), config, seed=0)

    for _ in range(3):
        epoch = take(batches, len(packed) // batch_size)
        rows = [row for batch in epoch for row in rows_of(batch)]
        assert texts_of(rows) == texts_of(packed)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_share_of_facts_is_counted_in_rows(tokenizer, share):
    rows = pack(tokenizer, [("a", "b"), ("a c", "b c")], ["x y z"], seq_len=6)

    config = DataConfig(fact_share=share, batch_size=8)
    batches = take(packed_batches(rows, config, seed=0), 10)

    first = np.concatenate([batch.tokens[:, 0] for batch in batches])
    # The mixing is even, not drawn: one row of 80 may lie on either side.
    assert (first == ids("a")[0]).mean() == pytest.approx(share, abs=1 / 80)


def counted():
    """Returns rows that count how often one is taken, and a maker of batches."""
    packed = Counted(Batch(*[np.full(4, number)] * 6) for number in range(11))
    rows, config = Packed(packed, [], 0, []), DataConfig(batch_size=3)
    return packed, lambda: packed_batches(rows, config, seed=5)


@pytest.mark.parametrize("done", [0, 1, 17])
def test_batches_resume_where_they_were(done):
    assert_resumes(counted()[1], done)


def test_resuming_reads_no_earlier_row():
    assert_seeks(*counted())


@pytest.mark.parametrize(("share", "every"), [(0.05, 20), (0.5, 2), (0.3, 4)])
def test_a_share_of_facts_and_of_texts_is_held_out(share, every):
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
    with pytest.raises(ConfigError, match="neither facts nor texts"):
        packed_batches(Packed([], [], 0, []), DataConfig(), seed=0)
