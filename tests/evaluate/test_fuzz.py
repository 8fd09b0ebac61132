"""Facts and answers of any kind: what is right, and what comes back as it was."""

import contextlib
import json
import re
import time
import unicodedata

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from rich.console import Console

from smf_jax.config import ConfigError
from smf_jax.data.batches import encode_example
from smf_jax.data.examples import (
    held_out_prompts,
    statement_example,
    taught_examples,
    taught_prompts,
)
from smf_jax.data.prompts import PLAIN, encode_asked
from smf_jax.data.records import Fact, read_facts, read_texts
from smf_jax.data.tokenizer import (
    decode,
    encode_text,
    load_tokenizer,
    train_tokenizer,
    unknown_words,
)
from smf_jax.evaluate.normalise import normalise, squad_normalise
from smf_jax.evaluate.scores import is_exact, token_f1
from smf_jax.verbs.evaluate import ask
from tests.hf.kinds import pieces

MILLION = 10**6
SIGNS = "-+.,;:'\"()/%#&*_@`!?\u2026\u2013\u2212\uff0d\uff05\u2030\u2032\u20ac"
LETTERS = "aAbXé\u0301É\u0915\u093f東京。ßΣİ\u05d0\u0665\u00b2\u200b\u200d🦊"
PARTS = [*SIGNS, *LETTERS, *"0125", " ", " ", "  ", "\n", "\t", "the ", " a ", "1,000"]
PARTS += ["<eot>", "<pad>", "</s>", "<s>", "<0x41>", "[Y]", "[X]", "A", "red", "is red"]
part = st.sampled_from(PARTS)
joined = st.lists(part, min_size=1, max_size=8).map("".join)
strange = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
texts = (joined | strange).filter(str.strip)
many = settings(
    max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# --- what is right ---


@st.composite
def near(draw):
    """Returns two texts that differ in a few parts."""
    one = draw(st.lists(part, min_size=1, max_size=8))
    other = list(one)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(other)))
        other[start : start + draw(st.integers(0, 1))] = draw(
            st.lists(part, max_size=1)
        )
    assume("".join(one).strip() and "".join(other).strip())
    return "".join(one), "".join(other)


def plain(text):
    """Returns a text of one case and form, with one kind of hyphen."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    return re.sub("[\u2013\u2212\uff0d]", "-", text).replace("\uff05", "%")


def symbols(text):
    """Returns all but spaces and the punctuation of sentences."""
    kept = [c for c in text if c in "#%&*+/@\\_\u2030\u2032" or not is_mark(c)]
    return kept or [c for c in text if c == "-"] or text.split()


def is_mark(character):
    is_punctuation = unicodedata.category(character).startswith("P")
    return is_punctuation or character == "`" or character.isspace()


def without_articles(text):
    """Returns the words that are neither an article nor the dash before a word."""
    words = re.sub(r"(?<!\S)-(?=\s[^\W\d_])", "", text).split()
    bare = [
        "".join(c for c in word if c == "-" or c in symbols(word)) for word in words
    ]
    pairs = zip(words, bare, strict=True)
    return " ".join(
        word for word, letters in pairs if letters not in ("a", "an", "the")
    )


def numbers(text):
    """Returns the numbers of a text, with their signs and points."""
    thousands = r"(?<![\d.,])\d{1,3}(,\d{3})+(?![\d,])"
    text = re.sub(thousands, lambda number: number[0].replace(",", ""), text)
    text = re.sub(r"(?<!\.)\.(?=\d)", "¤", text)  # a point, not the end of a sentence
    marks = "[.\"'`()!?;:,\u2026。]+"
    text = re.sub(rf"(?<!\d){marks}|{marks}(?![\d¤])", "", text)
    return re.findall(r"[-+]?¤?\d+(?:[^\w\s]+\d+)*", text)


@settings(max_examples=600)
@given(pair=near())
def test_only_what_has_the_same_symbols_and_numbers_is_right(pair):
    one, other = map(plain, pair)
    if is_exact(pair[0], pair[1:]):
        assert numbers(one) == numbers(other)
        assert symbols(one) == symbols(other) or (
            symbols(without_articles(one)) == symbols(without_articles(other))
        )


@many
@given(accepted=st.lists(texts, min_size=1, max_size=4), reply=st.text(max_size=4))
def test_every_accepted_answer_is_right_and_scores_lie_in_0_to_1(accepted, reply):
    for rule in (normalise, squad_normalise):
        assert all(is_exact(text, accepted, rule) for text in accepted)
        assert all(token_f1(text, accepted, rule) == 1 for text in accepted)
        assert is_exact(reply, accepted, rule) <= (token_f1(reply, accepted, rule) == 1)
        assert 0 <= token_f1(reply, accepted, rule) <= 1


# --- what is written comes back ---


@pytest.fixture(scope="module", params=["bytes", "pieces"])
def tokenizer(request, tmp_path_factory):
    if request.param == "bytes":
        return train_tokenizer(["who is red? 東京"], "bpe", vocab_size=280)
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.json"
    pieces().save(str(path))
    return load_tokenizer(path, "</s>", bos=(1,))


lists = st.lists(texts, max_size=3)
facts = st.fixed_dictionaries(
    {"question": texts, "answers": st.lists(texts, min_size=1, max_size=3)},
    optional={
        "id": texts | st.integers(),
        "wordings": lists,
        "held_out": lists,
        "statements": st.lists(st.tuples(texts, st.integers(0, 2), texts), max_size=2),
    },
)


def row_of(fact):
    """Returns a fact whose statements hold its answers."""
    statements = [
        f"{before} {fact['answers'][index % len(fact['answers'])]}{after}"
        for before, index, after in fact.get("statements", [])
    ]
    return fact | {"statements": statements}


@many
@given(fact=facts, teach=st.sampled_from(["questions", "statements", "both"]))
def test_what_a_fact_says_is_what_is_taught_and_asked(tmp_path, tokenizer, fact, teach):
    path = tmp_path / "facts.jsonl"
    row = row_of(fact)
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n")
    is_taught = False
    with contextlib.suppress(ConfigError):  # such as a statement without the answer
        (read,) = read_facts(path)
        examples = taught_examples(read, teach)
        prompts = taught_prompts(read, teach) + held_out_prompts(read, teach)
        is_taught = True
    assume(is_taught)

    assert read.answers == tuple(text.strip() for text in row["answers"])
    written = {squeezed(read.question + read.answers[0])}
    written |= {squeezed(text + read.answers[0]) for text in read.wordings}
    written |= {squeezed(text) for text in row["statements"]}
    for example in examples:
        assert squeezed(example.prompt + example.completion) in written
        encoded = encode_example(tokenizer, example, "answer")
        ids = [*encoded["tokens"], encoded["targets"][-1]]
        space = " " if example.has_space and example.prompt else ""
        assert text_of(tokenizer, ids) == f"{example.prompt}{space}{example.completion}"
        taught = encoded["targets"][encoded["weights"] > 0]
        if example.prompt:  # or else nothing comes before the first token
            assert text_of(tokenizer, taught) == example.completion
        assert ids[-1] == tokenizer.eos
        assert tokenizer.eos not in ids[:-1]
    for prompt in prompts:
        asked = encode_asked(tokenizer, PLAIN, prompt.text, prompt.is_question)
        assert text_of(tokenizer, asked) == prompt.text
        assert all(is_exact(text, prompt.answers) for text in read.answers)


def squeezed(text):
    return "".join(text.split())


def text_of(tokenizer, ids):
    return decode(tokenizer, ids, (tokenizer.eos,))


# --- a million characters ---


@pytest.fixture(autouse=True)
def in_seconds(request):
    """Fails a test that takes much longer than the second or two that it should."""
    start = time.monotonic()
    yield
    if "million" in request.node.name:
        assert time.monotonic() - start < 30


def million(unit):
    return (unit * MILLION)[:MILLION]


@pytest.mark.parametrize("unit", ["a", "1,", "\u0301", "<eot>"])
@pytest.mark.parametrize(
    "key", ["id", "question", "answers", "wordings", "held_out", "statements", "text"]
)
def test_a_million_characters_are_read_or_refused_in_one_line(tmp_path, key, unit):
    path, text = tmp_path / "rows.jsonl", f"x{million(unit)}"
    row = {"id": "1", "question": "q", "answers": ["a"], "text": "t"}
    row[key] = text if key in ("id", "question", "text") else [text]
    path.write_text(json.dumps(row))
    message = ""
    for read in (read_facts, read_texts):
        with contextlib.suppress(ConfigError):
            assert len(read(path)) == 1
            continue
        with pytest.raises(ConfigError) as caught:
            read(path)
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 300 + len(str(path))

    assert (f'"{key}" has 1,000,001' in message) == (key not in ("statements", "text"))


def test_a_question_of_a_million_characters_is_refused_before_the_model_is_read():
    with pytest.raises(ConfigError, match=r"the question has 1,000,000 characters"):
        ask("nowhere", million("who ?"), Console(quiet=True))


def test_thousands_of_wordings_and_patterns_are_told_apart(tmp_path):
    path, patterns = tmp_path / "rows.jsonl", tmp_path / "patterns.jsonl"
    wordings, held_out = ([f"{n} {kind}" for n in range(30_000)] for kind in "wh")
    row = {"answers": ["a"], "wordings": wordings, "held_out": held_out}
    path.write_text(json.dumps(row | {"subject": "s", "relation": "R"}))
    relation = {"relation": "R", "patterns": [f"{n} [X] [Y]" for n in range(30_000)]}
    patterns.write_text(json.dumps(relation))

    (fact,) = read_facts(path, patterns)

    assert (len(fact.wordings), len(fact.held_out)) == (50_000, 40_000)


@pytest.mark.parametrize(("unit", "count"), [("a", 50_000), ("ab ", 333_333)])
def test_a_statement_of_up_to_a_million_characters_is_split(unit, count):
    aliases = ["zz", "1", "a" * 4096, *(f"alias {n}" for n in range(1000)), "x ab"]
    statement = f"it is x ab {unit * count}"

    example = statement_example(Fact("1", "q", tuple(aliases)), statement)

    assert example.prompt == "it is"


def test_an_answer_of_a_million_characters_is_compared():
    assert not is_exact(million("red- "), ["5"])
    assert not is_exact(million("red- "), ["5"], squad_normalise)


@pytest.mark.parametrize("unit", ["東京", "red "])
@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_text_of_a_million_characters_is_encoded(kind, unit):
    tokenizer = train_tokenizer(["who is red ?"] * 3, kind, vocab_size=270)
    text = million(unit).strip()

    ids = encode_text(tokenizer, text)

    if kind == "bpe":
        assert decode(tokenizer, ids, tokenizer.ends) == text
    assert (unknown_words(tokenizer, text) == []) == (kind == "bpe" or unit == "red ")
