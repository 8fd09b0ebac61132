import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smf_jax.data.prompts import Prompt
from smf_jax.data.records import read_facts
from smf_jax.evaluate.intervals import wilson
from smf_jax.evaluate.normalise import squad_normalise
from smf_jax.evaluate.scores import is_exact, score, token_f1


@pytest.mark.parametrize("answer", ["ada may", "Ada May.", "the  Ada May", "countess"])
def test_any_accepted_answer_is_exact_however_it_is_written(answer):
    assert is_exact(answer, ("Ada May", "the Countess"))


@pytest.mark.parametrize("answer", ["ada", "ada may x", "may ada", "", "adamay"])
def test_a_part_or_more_or_another_order_is_not_exact(answer):
    assert not is_exact(answer, ("Ada May", "the Countess"))


@pytest.mark.parametrize("right", ["A", "a", "+", "?", "C++", "-5", "the"])
def test_silence_and_what_is_near_are_not_a_short_answer(right):
    for answer in ("", " ", "B", "-", "!", "C", "5", "an"):
        assert not is_exact(answer, (right,))
        assert token_f1(answer, (right,)) == 0


@pytest.mark.parametrize(
    ("answer", "accepted", "want"),
    [
        ("red fox", ["red fox"], 1.0),
        ("fox red", ["red fox"], 1.0),  # order does not matter
        ("red", ["red fox"], 2 / 3),  # 1 shared of 1 and 2 words
        ("red red cat", ["red fox"], 2 / 5),  # a word is shared once
        ("cat", ["red fox"], 0.0),
        ("", ["red fox"], 0.0),
        ("The Red!", ["a red"], 1.0),
        ("the", ["fox"], 0.0),
        ("red", ["green owl", "red fox", "red old fox"], 2 / 3),  # the best of them
    ],
)
def test_f1_counts_the_words_shared_with_the_nearest_answer(answer, accepted, want):
    assert token_f1(answer, accepted) == pytest.approx(want)


def test_a_score_is_the_mean_over_facts_with_its_number_and_interval():
    prompts = [Prompt("1", "q", ("red fox",)), Prompt("2", "q", ("owl", "red owl"))]

    got = score(["red", "owl"], prompts)

    assert (got.n, got.exact_match) == (2, 0.5)
    assert got.f1 == pytest.approx((2 / 3 + 1) / 2)
    assert got.exact_match_95 == wilson(0.5, 2)
    assert got.f1_95 == wilson(got.f1, 2)
    with pytest.raises(ValueError, match="zip"):
        score(["red"], prompts)


def test_several_prompts_of_a_fact_count_as_one():
    prompts = [Prompt(fact, "q", ("owl",)) for fact in "aaab"]

    got = score(["owl", "owl", "fox", "fox"], prompts)

    assert (got.n, got.exact_match) == (2, pytest.approx(1 / 3))


def test_the_scores_of_squad_stand_beside_ours():
    got = score(["5", "C"], [Prompt("1", "q", ("-5",)), Prompt("2", "q", ("C",))])

    assert (got.exact_match, got.squad_exact_match) == (0.5, 1.0)
    assert (got.f1, got.squad_f1) == (0.5, 1.0)
    assert squad_normalise("A") == ""


answers = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)
rows = st.lists(answers.filter(str.strip), min_size=1, max_size=4)


@given(right=rows, other=answers)
def test_every_accepted_answer_is_right_and_only_what_is_written_alike(right, other):
    assert all(is_exact(answer, right) for answer in right)
    if is_exact(other, right):
        letters = {c for c in other.lower() if c.isalnum()}
        assert any(letters == {c for c in r.lower() if c.isalnum()} for r in right) or (
            {"a", "n", "t", "h", "e"} & letters
        )


def test_an_answer_that_is_a_letter_is_a_letter(tmp_path):
    path = tmp_path / "facts.jsonl"
    row = {"question": "Which vitamin is retinol?", "answers": ["A"]}
    path.write_text(json.dumps(row))
    (fact,) = read_facts(path)

    assert is_exact("A", fact.answers)
    assert is_exact("a.", fact.answers)
    assert not is_exact("", fact.answers)
