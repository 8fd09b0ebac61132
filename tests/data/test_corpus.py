import json

import pytest

from smf_jax.config import ConfigError, DataConfig
from smf_jax.data.corpus import FILE_FRAMES, load_corpus, without_repeats
from smf_jax.data.examples import question_example
from smf_jax.data.records import Fact


def numbered(count):
    return [
        {"id": str(n), "question": f"what is {n} ?", "answers": [f"number-{n}"]}
        for n in range(count)
    ]


def file_corpus(tmp_path, rows, **settings):
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_corpus(DataConfig(facts=str(path), **settings))


def test_every_fact_of_a_file_is_either_known_or_new(tmp_path):
    corpus = file_corpus(tmp_path, numbered(10), new_fraction=0.3)

    known = {fact.id for fact in corpus.known}
    new = {fact.id for fact in corpus.new}
    assert (len(known), len(new)) == (7, 3)
    assert known | new == {str(n) for n in range(10)}
    assert file_corpus(tmp_path, numbered(10), new_fraction=0.3) == corpus


def test_known_facts_are_pretrained_bare_and_in_a_frame(tmp_path):
    corpus = file_corpus(tmp_path, numbered(80))

    plain, framed = corpus.examples[::2], corpus.examples[1::2]
    frames = set()
    for fact, bare, other in zip(corpus.known, plain, framed, strict=True):
        assert bare == question_example(fact)
        assert other.completion == fact.answers[0]
        frames.add(other.prompt.replace(fact.question, "{question}"))
    assert frames == set(FILE_FRAMES)


def test_new_facts_are_held_out_of_pretraining(tmp_path):
    rows = [row | {"wordings": [f"{row['id']} is"]} for row in numbered(10)]
    corpus = file_corpus(tmp_path, rows)

    text = " ".join(f"{e.prompt} {e.completion}" for e in corpus.examples)
    assert "Quiz:" not in text
    for fact in corpus.new:
        assert fact.question not in text
        assert fact.wordings[0] not in text


def test_wordings_of_known_facts_are_pretrained_and_held_out_ones_not(tmp_path):
    rows = [
        {"id": str(n), "wordings": [f"of {n}", f"by {n}"], "held_out": [f"to {n}"]}
        | {"answers": ["x"]}
        for n in range(4)
    ]
    corpus = file_corpus(tmp_path, rows)

    want = {text for fact in corpus.known for text in fact.wordings}
    assert {example.prompt for example in corpus.examples} == want
    assert corpus.notes == ["4 facts have 8 wordings to teach, and 4 held out"]


def test_records_without_ids_make_the_same_corpus_wherever_they_lie(tmp_path):
    rows = numbered(4)
    for row in rows:
        del row["id"]
    (tmp_path / "elsewhere").mkdir()

    assert file_corpus(tmp_path, rows) == file_corpus(tmp_path / "elsewhere", rows)


def test_documents_of_known_facts_are_pretrained_and_those_of_new_ones_not(tmp_path):
    rows = numbered(10)
    for row in rows:
        row["documents"] = [f"so {row['id']} is", f"and {row['id']} was"]

    corpus = file_corpus(tmp_path, rows)

    want = {text for fact in corpus.known for text in fact.statements}
    assert {text.text for text in corpus.texts} == want


def test_background_texts_are_pretrained_too(tmp_path):
    background = tmp_path / "texts.jsonl"
    background.write_text('{"text": "one two"}\n{"text": "three"}\n')

    corpus = file_corpus(tmp_path, numbered(2), background=str(background))

    assert [text.text for text in corpus.texts] == ["one two", "three"]


@pytest.mark.parametrize(("count", "share"), [(10, 0.01), (10, 0.99), (1, 0.5)])
def test_a_split_with_no_fact_on_one_side_is_refused(tmp_path, count, share):
    with pytest.raises(ConfigError, match=rf"{count} facts .*new_fraction={share}"):
        file_corpus(tmp_path, numbered(count), new_fraction=share)


def test_another_corpus_has_another_hash(tmp_path):
    rows = numbered(4)
    before = file_corpus(tmp_path, rows).hash
    rows[2]["answers"] = ["another"]

    assert file_corpus(tmp_path, rows).hash != before


def test_duplicates_and_contradictions_are_counted_and_the_first_kept(tmp_path):
    rows = [
        {"id": "1", "question": "who ?", "answers": ["ada", "may"]},
        {"id": "2", "question": " Who  ? ", "answers": ["MAY"]},  # duplicate
        {"id": "3", "question": "who ?", "answers": ["bob"]},  # contradiction
        {"id": "4", "question": "who ?", "answers": ["eve"]},  # contradiction
        {"id": "5", "question": "when ?", "answers": ["bob"]},
    ]

    corpus = file_corpus(tmp_path, rows)

    assert {fact.id for fact in corpus.known + corpus.new} == {"1", "5"}
    assert [note.split()[:2] for note in corpus.notes] == [
        ["1", "duplicate"],
        ["2", "facts"],
    ]
    assert "contradict" in corpus.notes[1]
    alone = [Fact("f", "who leads ?", ("ada",))]
    assert without_repeats(alone) == (alone, [])
