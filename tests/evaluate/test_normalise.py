import unicodedata

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from smf_jax.evaluate.normalise import normalise, squad_normalise
from tests.reference import answer_scores

SAME = [
    ("The Beatles", "beatles"),
    ("a  cat, an owl!", "cat owl"),
    ("An-Nur (mosque)", "annur mosque"),
    ("ÉCOLE", "école"),
    ("e\u0301cole", "école"),  # a combining accent
    ("Paris.", "paris"),
    ("«Paris»", "paris"),
    ("U.S.A.", "usa"),
    ("Spider-Man", "spiderman"),
    ("red - blue", "red blue"),
    ("1,000,000", "1000000"),
    ("\u22125", "-5"),  # a minus sign
    ("1914\u20131918", "1914-1918"),  # an en dash
    ("東京です。", "東京です"),
    ("パブロ・ピカソ", "パブロピカソ"),
    ("\uff15\uff05", "\uff15%"),
    ("\uff0d5", "-5"),
    ("\u201cThe Beatles\u201d", "beatles"),
    ("the \u20135", "-5"),
]
DIFFERENT = [
    ("A", ""),
    ("A", "B"),
    ("the", "a"),
    ("+", "-"),
    ("?", "!"),
    ("-5", "5"),
    ("2.5", "25"),
    ("1,5", "15"),
    ("10:30", "1030"),
    (".5", "5"),
    ("C++", "C"),
    ("C#", "C"),
    ("H+", "H-"),
    ("A-", "A+"),
    ("AT&T", "ATT"),
    ("vitamin A", "vitamin"),
    ("$5", "€5"),
    ("5 %", "5"),
    ("m²", "m2"),
    ("3 - 5", "3 5"),
    ("x-5", "x5"),
    ("theatre", "atre"),
    ("A, B", "B"),
    ("A. A. Milne", "Milne"),
    ("(a) red", "red"),
    ("The The", "The"),
    ("5\u2030", "5"),
    ("\u0665\u066a", "\u0665"),
    ("5\u2032", "5\u2033"),
    ("\uff23\uff03", "\uff23"),
    ("\uff0d5", "5"),
    ("1..5", "1.5"),
    ("...5", ".5"),
    ("1,-2", "1-2"),
    ("1._2", "1_2"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spelling_that_tells_no_answer_from_another_does_not_count(one, other):
    assert normalise(one) == normalise(other) == other


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_tells_one_answer_from_another_counts(one, other):
    assert normalise(one) != normalise(other)


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(text=any_text)
@example("İ")  # its lower case is two characters
@example("A the An")
def test_something_is_left_of_every_answer(text):
    got = normalise(text)

    assert unicodedata.normalize("NFC", got) == got
    assert bool(got) == bool(text.strip())


signs = st.sampled_from(["", "+", "-", "\u2212"])
numbers = st.tuples(signs, st.integers(0, 9999), st.sampled_from(["", ".5", ",25"]))


@given(one=numbers, other=numbers)
def test_different_numbers_are_different_answers(one, other):
    plain = [("-" if sign == "\u2212" else sign, *rest) for sign, *rest in (one, other)]
    assume(plain[0] != plain[1])

    assert normalise("".join(map(str, one))) != normalise("".join(map(str, other)))


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        ("A", ""),
        ("-5", "5"),
        ("2.5 C++", "25 c"),
        ("The cat, an owl!", "cat owl"),
        ("e\u0301", "e\u0301"),
    ],
)
def test_the_evaluation_of_squad_drops_what_it_drops(answer, want):
    assert squad_normalise(answer) == want


SIGNS = (
    "0125-+.,;:'\"()/%#&*_@`!?^\u2026\u2013\u2212\uff0d\uff05\u2030\u2032\u00b2\u00bd"
)
LETTERS = "aAbÉ\u0301İßΣका東。・€\u200b\n"
PIECES = [*SIGNS, *LETTERS, "1,000", " ", "  ", "the ", " a ", "<s>"]
near_texts = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


@settings(max_examples=300)
@given(text=near_texts | any_text)
def test_both_rules_are_those_that_regular_expressions_write(text):
    assert normalise(text).split() == answer_scores.our_words(text)
    assert squad_normalise(text).split() == answer_scores.squad_words(text)
