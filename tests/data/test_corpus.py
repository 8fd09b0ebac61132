import json

import pytest

from smf_jax.config import ConfigError, DataConfig
from smf_jax.data.corpus import (
    FILE_FRAMES,
    Example,
    as_taught,
    load_corpus,
    statement_example,
    taught_examples,
    without_repeats,
)
from smf_jax.data.records import Fact

FACT = Fact("f", "who leads ?", ("ada", "ada may"), ("the lead is ada may now",))


def write_facts(tmp_path, rows):
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(count):
    return [
        {"id": str(n), "question": f"what is {n} ?", "answers": [f"number-{n}"]}
        for n in range(count)
    ]


def file_corpus(tmp_path, rows, **settings):
    return load_corpus(DataConfig(facts=write_facts(tmp_path, rows), **settings))


def test_every_fact_of_a_file_is_either_known_or_new(tmp_path):
    corpus = file_corpus(tmp_path, numbered(10), new_fraction=0.3)

    known = {fact.id for fact in corpus.known}
    new = {fact.id for fact in corpus.new}
    assert (len(known), len(new)) == (7, 3)
    assert known | new == {str(n) for n in range(10)}


def test_the_same_file_is_always_split_alike(tmp_path):
    first, second = (file_corpus(tmp_path, numbered(10)) for _ in range(2))

    assert first == second


def test_known_facts_are_pretrained_as_they_stand_and_in_a_frame(tmp_path):
    corpus = file_corpus(tmp_path, numbered(2))

    (known,) = corpus.known
    plain, framed = corpus.examples
    assert plain == Example(known.question, known.answers[0], known.id)
    assert framed.prompt in {
        frame.format(question=known.question) for frame in FILE_FRAMES
    }
    assert framed.completion == known.answers[0]


def test_frames_differ_from_fact_to_fact(tmp_path):
    corpus = file_corpus(tmp_path, numbered(40))

    framed = corpus.examples[1::2]
    assert len({example.prompt.split(" ")[0] for example in framed}) > 1


def test_new_facts_are_asked_in_a_wording_that_is_never_trained(tmp_path):
    corpus = file_corpus(tmp_path, numbered(10))

    prompts = {example.prompt for example in corpus.examples}
    for fact, held_out in zip(corpus.new, corpus.new_held_out, strict=True):
        assert held_out == fact._replace(question=f"Quiz: {fact.question}")
        assert held_out.question not in prompts
    assert not any(prompt.startswith("Quiz:") for prompt in prompts)


def test_new_facts_are_no_part_of_pretraining(tmp_path):
    corpus = file_corpus(tmp_path, numbered(10))

    said = " ".join(f"{e.prompt} {e.completion}" for e in corpus.examples)
    assert not any(fact.question in said for fact in corpus.new)


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


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_split_that_leaves_nothing_on_one_side_is_refused(tmp_path, share):
    with pytest.raises(ConfigError, match=rf"data\.new_fraction={share}") as caught:
        file_corpus(tmp_path, numbered(10), new_fraction=share)

    assert "10 facts" in str(caught.value)


def test_one_fact_is_too_few(tmp_path):
    with pytest.raises(ConfigError, match="1 facts"):
        file_corpus(tmp_path, numbered(1))


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
    assert [note.split()[0] for note in corpus.notes] == ["1", "2"]
    assert "duplicate" in corpus.notes[0]
    assert "contradict" in corpus.notes[1]


def test_facts_without_repeats_need_no_note():
    assert without_repeats([FACT]) == ([FACT], [])


@pytest.mark.parametrize(
    ("statement", "want"),
    [
        ("the lead is bob", Example("", "the lead is bob", "f")),
        ("bob leads", Example("", "bob leads", "f")),
        ("ada leads", Example("", "ada leads", "f")),
        ("the lead is ada", Example("the lead is", "ada", "f")),
        ("ada, yes, ada it is", Example("ada, yes,", "ada it is", "f")),
        ("it is ada may , truly", Example("it is", "ada may , truly", "f")),
    ],
)
def test_a_statement_is_split_before_the_last_answer_in_it(statement, want):
    assert statement_example(FACT, statement) == want


def test_an_answer_inside_a_word_does_not_split_a_statement():
    fact = FACT._replace(answers=("art",))

    assert statement_example(fact, "art won the party") == Example(
        "", "art won the party", "f"
    )


def test_teaching_questions_teaches_the_first_answer():
    assert taught_examples(FACT, "questions") == [Example("who leads ?", "ada", "f")]


def test_teaching_statements_teaches_each_of_them():
    fact = FACT._replace(statements=("x ada", "y ada"))

    assert taught_examples(fact, "statements") == [
        Example("x", "ada", "f"),
        Example("y", "ada", "f"),
    ]


def test_teaching_statements_where_there_are_none_is_refused_by_id():
    with pytest.raises(ConfigError, match="'f' has no statements"):
        taught_examples(FACT._replace(statements=()), "statements")


def test_a_fact_taught_by_statements_is_asked_by_the_first():
    asked = as_taught(FACT, "statements")

    assert asked == FACT._replace(question="the lead is")
