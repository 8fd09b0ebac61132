import pytest
from hypothesis import given
from hypothesis import strategies as st

from smf_jax.config import ConfigError
from smf_jax.data.tokenizer import (
    END,
    PAD,
    SPECIAL_TOKENS,
    UNKNOWN,
    decode,
    encode_answered,
    encode_prompt,
    encode_text,
    load_tokenizer,
    tokenizer_hash,
    train_tokenizer,
)

TEXTS = ("red red red blue blue green",)  # ids 3, 4, 5: the most frequent first


@pytest.fixture(scope="module")
def words():
    return train_tokenizer(TEXTS, "word", vocab_size=10)


@pytest.fixture(scope="module")
def pieces():
    return train_tokenizer(TEXTS, "bpe", vocab_size=264)


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_the_special_tokens_lie_at_their_ids(kind):
    tokenizer = train_tokenizer(TEXTS, kind, vocab_size=264)

    got = [tokenizer.rules.id_to_token(token) for token in (PAD, END, UNKNOWN)]
    assert got == SPECIAL_TOKENS


def test_a_text_is_its_words_and_one_end_token(words):
    assert encode_text(words, "red green  blue") == [3, 5, 4, END]


def test_a_prompt_waits_without_an_end_token(words):
    assert encode_prompt(words, "red green") == [3, 5]


def test_a_word_that_was_never_seen_is_unknown(words):
    assert encode_prompt(words, "red grey") == [3, UNKNOWN]


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_prompt_has_the_same_ids_alone_and_answered(kind):
    tokenizer = train_tokenizer(TEXTS, kind, vocab_size=264)

    prompt, completion = encode_answered(tokenizer, "red blue", "green red")

    assert prompt == encode_prompt(tokenizer, "red blue")
    assert completion[-1] == END
    assert completion.count(END) == 1
    assert decode(tokenizer, completion) == "green red"


def test_decoding_stops_at_the_first_end_token(words):
    assert decode(words, [3, 5, END, 4, END]) == "red green"


def test_decoding_an_end_token_alone_gives_nothing(words):
    assert decode(words, [END, 3]) == ""


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
def test_bytes_spell_any_text(pieces, text):
    assert decode(pieces, encode_text(pieces, text)) == text.strip()


@pytest.mark.parametrize("text", ["🦊 👩‍🚀", "שלום عالم", "a\x00b"])
def test_bytes_spell_emoji_right_to_left_and_nul(pieces, text):
    assert UNKNOWN not in encode_text(pieces, text)
    assert decode(pieces, encode_text(pieces, text)) == text


def test_a_small_vocabulary_keeps_the_most_frequent_words():
    tokenizer = train_tokenizer(TEXTS, "word", vocab_size=5)

    assert tokenizer.num_tokens == 5
    assert encode_prompt(tokenizer, "red blue green") == [3, 4, UNKNOWN]


# 3 special tokens, and for "bpe" 256 bytes beside them.
@pytest.mark.parametrize(("kind", "vocab_size"), [("word", 2), ("bpe", 258)])
def test_a_vocabulary_without_room_is_refused(kind, vocab_size):
    with pytest.raises(ConfigError, match=rf"vocab_size={vocab_size}"):
        train_tokenizer(TEXTS, kind, vocab_size)


def test_the_hash_names_the_vocabulary(words):
    same = train_tokenizer(TEXTS, "word", vocab_size=10)
    other = train_tokenizer(["red red blue"], "word", vocab_size=10)

    assert tokenizer_hash(same) == tokenizer_hash(words)
    assert tokenizer_hash(other) != tokenizer_hash(words)


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_saved_tokenizer_is_the_same_one(tmp_path, kind):
    want = train_tokenizer(TEXTS, kind, vocab_size=264)
    want.rules.save(str(tmp_path / "tokenizer.json"))

    got = load_tokenizer(tmp_path / "tokenizer.json")

    assert tokenizer_hash(got) == tokenizer_hash(want)
    assert encode_text(got, "red grey") == encode_text(want, "red grey")


def test_a_missing_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(tmp_path / "tokenizer.json")
