import pytest

from smf_jax.data.records import Fact
from smf_jax.data.tokenizer import train_tokenizer
from smf_jax.evaluate import answers
from smf_jax.evaluate.answers import (
    Scores,
    answer,
    is_exact,
    longest_answer,
    normalise,
    score,
    token_f1,
)
from tests import tiny


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        ("The Beatles", "beatles"),
        ("a  cat, an owl!", "cat owl"),
        ("An-Nur (mosque)", "annur mosque"),
        ("theatre", "theatre"),  # "the" is an article only as a word
        ("  ", ""),
        ("The", ""),
        ("ÉCOLE", "école"),
    ],
)
def test_case_punctuation_articles_and_spaces_are_normalised(answer, want):
    assert normalise(answer) == want


@pytest.mark.parametrize("answer", ["ada may", "Ada May.", "the  Ada May", "countess"])
def test_any_accepted_answer_is_exact_however_it_is_written(answer):
    assert is_exact(answer, ("Ada May", "the Countess"))


@pytest.mark.parametrize("answer", ["ada", "ada may x", "may ada", "", "adamay"])
def test_a_part_or_more_or_another_order_is_not_exact(answer):
    assert not is_exact(answer, ("Ada May", "the Countess"))


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
        ("the", ["a"], 1.0),
        ("the", ["fox"], 0.0),
        ("red", ["green owl", "red fox", "red old fox"], 2 / 3),  # the best of them
    ],
)
def test_f1_counts_the_words_shared_with_the_nearest_answer(answer, accepted, want):
    assert token_f1(answer, accepted) == pytest.approx(want)


def test_a_score_is_the_mean_over_questions():
    facts = [Fact("1", "q", ("red fox",)), Fact("2", "q", ("owl", "red owl"))]

    assert score(["red", "owl"], facts) == Scores(
        exact_match=0.5, f1=pytest.approx((2 / 3 + 1) / 2)
    )
    with pytest.raises(ValueError, match="zip"):
        score(["red"], facts)


def test_the_longest_first_answer_is_counted_with_eos():
    tokenizer = train_tokenizer(["red old fox owl"], "word", vocab_size=10)
    facts = [Fact("1", "q", ("red fox", "red old fox owl")), Fact("2", "q", ("owl",))]

    assert longest_answer(tokenizer, facts) == 3


def test_a_question_has_the_same_answer_in_any_batch(monkeypatch):
    monkeypatch.setattr(answers, "QUESTIONS_PER_BATCH", 4)
    words = ["red", "old", "fox", "owl"]
    tokenizer = train_tokenizer([" ".join(words)], "word", vocab_size=10)
    model = tiny.make_model(tiny.model_config(vocab_size=10))
    lengths = [35, 3, 12, 1, 9, 11, 33, 2, 4, 10]
    questions = [
        " ".join(words[(n * n + index) % 4] for index in range(n)) for n in lengths
    ]
    want = [answer(model, tokenizer, [q], 3)[0] for q in questions]
    answers._generate.clear_cache()

    got = answer(model, tokenizer, questions, 3)

    assert got == want
    assert len(set(got)) > 2
    assert answers._generate._cache_size() == 3  # four at a time, by length
