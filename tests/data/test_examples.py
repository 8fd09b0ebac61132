import pytest

from smf_jax.config import ConfigError
from smf_jax.data.examples import (
    held_out_prompts,
    known_prompt,
    statement_example,
    taught_examples,
    taught_prompts,
)
from smf_jax.data.prompts import Example, Prompt
from smf_jax.data.records import Fact

FACT = Fact("f", "who leads ?", ("ada", "ada may"), ("the lead is ada may now",))
PAINTER = Fact("p", "who ?", ("Picasso", "Pablo Picasso", "Pablo"))


@pytest.mark.parametrize(
    ("statement", "prompt", "completion"),
    [
        ("the lead is bob", "", "the lead is bob"),
        ("ada leads", "", "ada leads"),
        ("the lead is ada", "the lead is", "ada"),
        ("ada, yes, ada it is", "ada, yes,", "ada it is"),
        ("it is ada may , truly", "it is", "ada may , truly"),
        ("an armada, adamant", "", "an armada, adamant"),  # only within words
        ("the lead is ADA May", "the lead is", "ADA May"),  # in any case
        ("all is ada\u0301", "", "all is ada\u0301"),  # an accent goes on with a word
    ],
)
def test_a_statement_is_split_before_the_last_answer_in_it(
    statement, prompt, completion
):
    want = Example(prompt, completion, "f")
    assert statement_example(FACT, statement) == want


@pytest.mark.parametrize(
    ("statement", "completion"),
    [
        ("Guernica was painted by Pablo Picasso", "Pablo Picasso"),
        ("Guernica is of Picasso.", "Picasso."),
        ("Pablo Picasso it was, whom all call Pablo", "Pablo"),
    ],
)
def test_the_longest_alias_at_the_last_place_is_the_completion(statement, completion):
    example = statement_example(PAINTER, statement)

    assert example.completion == completion
    assert f"{example.prompt} {completion}" == statement


@pytest.mark.parametrize(
    ("answer", "statement", "prompt"),
    [
        ("東京", "日本の首都は東京です。", "日本の首都は"),
        ("北京", "中国的首都是北京。", "中国的首都是"),
        ("กรุงเทพ", "เมืองหลวงคือกรุงเทพมหานคร", "เมืองหลวงคือ"),
    ],
)
def test_scripts_without_spaces_are_split_within_a_sentence(answer, statement, prompt):
    example = statement_example(Fact("f", "q", (answer,)), statement)

    assert example.prompt == prompt
    assert example.prompt + example.completion == statement
    assert not example.has_space


@pytest.mark.parametrize("statement", ["it costs 1.5 euro", "at 5.1 or 51", "10,500"])
def test_a_digit_of_a_number_is_no_answer(statement):
    fact = Fact("f", "q", ("5",))

    assert statement_example(fact, statement).completion == statement


def test_a_fact_is_taught_by_its_question_its_statements_or_both():
    fact = FACT._replace(statements=("x ada", "y ada"))
    question = [Example("who leads ?", "ada", "f", is_question=True)]
    statements = [Example("x", "ada", "f"), Example("y", "ada", "f")]

    assert taught_examples(fact, "questions") == question
    assert taught_examples(fact, "statements") == statements
    assert taught_examples(fact, "both") == question + statements
    assert taught_examples(FACT._replace(statements=()), "both") == question


def test_wordings_are_taught_beside_the_question_or_alone():
    fact = FACT._replace(wordings=("the lead is", "first is"), held_out=("on top is",))
    texts = [Example("the lead is", "ada", "f"), Example("first is", "ada", "f")]
    question = Example("who leads ?", "ada", "f", is_question=True)

    assert taught_examples(fact, "questions") == [question, *texts]
    assert taught_examples(fact._replace(question=""), "questions") == texts


def test_a_fact_is_asked_in_all_words_that_teach_it():
    fact = FACT._replace(wordings=("the lead is",))
    asked = [Prompt("f", "who leads ?", FACT.answers)]
    asked += [Prompt("f", "the lead is", FACT.answers, is_question=False)]

    assert taught_prompts(fact, "questions") == asked
    assert taught_prompts(fact, "both") == asked


def test_a_statement_is_asked_for_its_own_ending_too():
    answers = ("ada", "ada may", "ada may now")

    want = [Prompt("f", "the lead is", answers, is_question=False)]
    assert taught_prompts(FACT, "statements") == want


def test_a_fact_is_asked_in_words_that_never_teach_it():
    held_out = FACT._replace(held_out=("on top is", "the first:"))
    asked = [Prompt("f", t, FACT.answers, is_question=False) for t in held_out.held_out]

    assert held_out_prompts(held_out, "questions") == asked
    framed = [Prompt("f", "Quiz: who leads ?", FACT.answers)]
    assert held_out_prompts(FACT, "questions") == framed
    assert held_out_prompts(FACT, "statements") == [
        Prompt("f", "who leads ?", FACT.answers)
    ]
    assert held_out_prompts(FACT._replace(question=""), "questions") == []


def test_a_known_fact_is_asked_by_its_question_or_first_wording():
    fact = FACT._replace(wordings=("the lead is",))

    assert known_prompt(fact) == Prompt("f", "who leads ?", FACT.answers)
    assert known_prompt(fact._replace(question="")) == Prompt(
        "f", "the lead is", FACT.answers, is_question=False
    )


def test_a_fact_that_statements_cannot_teach_is_refused_by_its_id():
    with pytest.raises(ConfigError, match="'f' has no statements"):
        taught_examples(FACT._replace(statements=()), "statements")
    with pytest.raises(ConfigError, match="'f' has no statement that leads up"):
        taught_prompts(FACT._replace(statements=("ada leads",)), "statements")
