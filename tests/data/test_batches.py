import itertools
import json

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
    stack_facts,
    taught_batches,
    with_scored,
)
from smf_jax.data.corpus import Corpus, Example
from smf_jax.data.records import Text
from smf_jax.data.tokenizer import END, PAD, train_tokenizer

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


def texts_of(rows) -> list[tuple[int, ...]]:
    """Returns tokens and last target of each text in packed rows, sorted."""
    found = []
    for row in rows:
        for segment in range(1, row.segments.max() + 1):
            here = row.segments == segment
            found.append((*row.tokens[here].tolist(), int(row.targets[here][-1])))
    return sorted(found)


def row(length: int):
    """Returns a row of `length` tokens that nothing else has."""
    tokens = np.arange(length, dtype=np.int32) + 10 * length
    weights = np.ones(length, np.float32)
    records = np.full(length, length, np.int32)
    return {
        "tokens": tokens,
        "targets": tokens + 1,
        "weights": weights,
        "records": records,
    }


def take(batches, count):
    return list(itertools.islice(batches, count))


def same(batches, others) -> bool:
    pairs = zip(batches, others, strict=True)
    return all(
        np.array_equal(x, y) for pair in pairs for x, y in zip(*pair, strict=True)
    )


def test_each_target_is_the_next_token(tokenizer):
    got = encode_example(tokenizer, Example("a b", "c d", "f"), "all")

    assert got["tokens"].tolist() == ids("abcd")
    assert got["targets"].tolist() == [*ids("bcd"), END]


def test_the_loss_is_on_the_answer_and_its_end_alone(tokenizer):
    got = encode_example(tokenizer, Example("a b", "c d", "f"), "answer")

    assert got["targets"].tolist() == [*ids("bcd"), END]
    assert got["weights"].tolist() == [0, 1, 1, 1]


def test_the_loss_can_be_on_every_token(tokenizer):
    got = encode_example(tokenizer, Example("a b", "c d", "f"), "all")

    assert got["weights"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("loss_on", ["answer", "all"])
def test_a_text_without_prompt_is_trained_whole(tokenizer, loss_on):
    got = encode_example(tokenizer, Example("", "a b", "f"), loss_on)

    assert got["targets"].tolist() == [*ids("b"), END]
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
        (*ids("ab"), END),
        (*ids("cde"), END),
        (*ids("fghi"), END),
        (*ids("jklmn"), END),
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

    assert texts_of(rows) == sorted((*ids(fact), END) for fact in facts)


def test_packed_rows_are_full_width(packed):
    assert {leaf.shape for batch in packed for leaf in jax.tree.leaves(batch)} == {(7,)}


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

    assert fact.targets.tolist() == [*ids("bcd"), END, PAD]
    assert fact.weights.tolist() == [0, 1, 1, 1, 0]
    assert text.targets.tolist() == [*ids("f"), END, PAD, PAD, PAD]
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
        (*ids("e"), END),
    ]


@pytest.mark.parametrize("letters", ["ab", "abc", "abcd", "abcdefghi"])
def test_each_token_of_a_text_is_a_target_once(tokenizer, letters):
    _, rows, *_ = pack_corpus(
        tokenizer, corpus(texts=[" ".join(letters)]), seq_len=3, loss_on="all"
    )

    targets = [target for batch in rows for target in batch.targets[batch.weights > 0]]
    assert sorted(targets) == sorted([*ids(letters)[1:], END])


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


# Six facts of one text each; its first token tells which.
FACTS_OF_ONE = [[row(length)] for length in (1, 2, 3, 4, 5, 9)]


def first_tokens(batches) -> list[int]:
    return [int(token) for batch in batches for token in batch.tokens[:, 0]]


def test_a_round_of_taught_batches_has_every_fact_once():
    batches = take(taught_batches(stack_facts(FACTS_OF_ONE), batch_size=2, seed=0), 6)

    for of_round in (batches[:3], batches[3:]):
        assert sorted(first_tokens(of_round)) == [10, 20, 30, 40, 50, 90]


def test_rounds_come_in_different_orders():
    first, second = take(
        taught_batches(stack_facts(FACTS_OF_ONE), batch_size=6, seed=0), 2
    )

    assert not same([first], [second])


def test_the_last_batch_of_a_round_goes_on_into_the_next():
    batches = take(taught_batches(stack_facts(FACTS_OF_ONE), batch_size=4, seed=0), 3)

    assert {batch.tokens.shape for batch in batches} == {(4, 16)}
    assert sorted(first_tokens(batches)) == sorted([10, 20, 30, 40, 50, 90] * 2)


def test_the_texts_of_a_fact_stand_together():
    facts = [[row(1), row(2), row(3)], [row(4), row(5), row(6)], [row(7)] * 3]

    batches = take(taught_batches(stack_facts(facts), batch_size=2, seed=0), 3)

    found = first_tokens(batches)
    triples = [tuple(found[start : start + 3]) for start in range(0, len(found), 3)]
    want = {(10, 20, 30), (40, 50, 60), (70, 70, 70)}
    assert sorted(triples) == sorted(2 * list(want))


def test_a_fact_with_fewer_texts_brings_rows_of_padding():
    facts = [[row(1), row(2), row(3)], [row(4)]]

    (batch,) = take(taught_batches(stack_facts(facts), batch_size=2, seed=0), 1)

    trained = batch.weights.sum(axis=1).tolist()
    assert trained in ([1, 2, 3, 4, 0, 0], [4, 0, 0, 1, 2, 3])
    assert ((batch.segments > 0).sum(axis=1) == trained).all()
    assert (batch.tokens[batch.segments == 0] == PAD).all()


@pytest.mark.parametrize(("longest", "want"), [(1, 8), (8, 8), (9, 16)])
def test_taught_batches_are_padded_to_a_multiple_of_8(longest, want):
    (batch,) = take(
        taught_batches(stack_facts([[row(longest)], [row(1)]]), 2, seed=0), 1
    )

    assert batch.tokens.shape == batch.weights.shape == (2, want)


def test_the_padding_of_taught_batches_has_no_segment_and_no_weight():
    (batch,) = take(taught_batches(stack_facts([[row(3)], [row(3)]]), 2, seed=0), 1)

    assert batch.tokens.tolist() == [[30, 31, 32, PAD, PAD, PAD, PAD, PAD]] * 2
    assert batch.targets.tolist() == [[31, 32, 33, PAD, PAD, PAD, PAD, PAD]] * 2
    assert batch.weights.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]] * 2
    assert batch.positions.tolist() == [[0, 1, 2, 0, 0, 0, 0, 0]] * 2
    assert batch.segments.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]] * 2


def test_places_with_a_loss_are_named_and_none_twice():
    weights = np.array([[0, 0, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], np.float32)
    empty = np.zeros(weights.shape, np.int32)
    batch = Batch(*[empty] * 6)._replace(weights=weights)

    (one, other) = with_scored([batch, batch._replace(weights=weights[:, ::-1])])

    for got in (one, other):
        assert got.scored.shape == (3, 2)
        taken = np.take_along_axis(got.weights, got.scored, 1)
        np.testing.assert_array_equal(taken.sum(1), got.weights.sum(1))
        assert all(len(set(row)) == 2 for row in got.scored.tolist())


def test_a_batch_may_have_one_fact():
    (batch,) = take(taught_batches(stack_facts(FACTS_OF_ONE), 1, seed=0), 1)

    assert batch.tokens.shape == (1, 16)


def test_a_batch_may_have_one_packed_row(packed):
    (batch,) = take(packed_batches(packed, [], 0.5, 1, seed=0), 1)

    assert batch.tokens.shape == (1, 7)


def taught(seed):
    return take(taught_batches(stack_facts(FACTS_OF_ONE), batch_size=2, seed=seed), 5)


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
    for batches in (taught, pretrained):
        assert same(batches(0), batches(0))
        assert not same(batches(0), batches(1))


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


class Counted(list):
    """A list that counts how often something was taken from it."""

    taken = 0

    def __getitem__(self, place):
        self.taken += 1
        return super().__getitem__(place)


def iterators():
    """Returns makers of both kinds of batches, each from a list that counts."""
    packed = Counted(Batch(*[np.full(4, number)] * 6) for number in range(11))
    facts = Counted(stack_facts([[row(2), row(3)] for _ in range(11)]))
    return [
        (packed, lambda: packed_batches(packed, [], 0.5, batch_size=3, seed=5)),
        (facts, lambda: taught_batches(facts, batch_size=3, seed=5)),
    ]


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("done", [0, 1, 3, 17])
def test_batches_go_on_where_they_were(kind, done):
    _, make = iterators()[kind]
    batches = make()
    take(batches, done)
    state = json.loads(json.dumps(batches.get_state()))  # as a checkpoint keeps it

    again = make()
    again.set_state(state)

    assert same(take(again, 5), take(batches, 5))


@pytest.mark.parametrize("kind", [0, 1])
def test_going_on_reads_nothing_of_what_was_read_before(kind):
    source, make = iterators()[kind]
    batches = make()
    before = source.taken

    batches.set_state({"next_index": 3 * 10**9})
    next(batches)

    assert source.taken - before == 3


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
