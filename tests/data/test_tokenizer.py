import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from smf_jax.config import ConfigError
from smf_jax.data.tokenizer import (
    EOS,
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

    got = [tokenizer.rules.id_to_token(token) for token in (PAD, EOS, UNKNOWN)]
    assert got == SPECIAL_TOKENS


def test_a_text_is_its_words_and_one_end_token(words):
    assert encode_text(words, "red green  blue") == [3, 5, 4, EOS]


def test_a_prompt_waits_without_an_end_token(words):
    assert encode_prompt(words, "red green") == [3, 5]


def test_a_word_that_was_never_seen_is_unknown(words):
    assert encode_prompt(words, "red grey") == [3, UNKNOWN]


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_prompt_has_the_same_ids_alone_and_answered(kind):
    tokenizer = train_tokenizer(TEXTS, kind, vocab_size=264)

    prompt, completion = encode_answered(tokenizer, "red blue", "green red")

    assert prompt == encode_prompt(tokenizer, "red blue")
    assert completion[-1] == EOS
    assert completion.count(EOS) == 1
    assert decode(tokenizer, completion) == "green red"


def test_decoding_stops_at_the_first_end_token(words):
    assert decode(words, [3, 5, EOS, 4, EOS]) == "red green"


def test_decoding_an_end_token_alone_gives_nothing(words):
    assert decode(words, [EOS, 3]) == ""


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


# --- tokenizers that others made ---


def sentence_pieces() -> tokenizers.Tokenizer:
    """Returns rules like those of Llama 2: a mark of a space before each text."""
    words = ["▁", "▁a", "▁red", "▁green", "r", "e", "d", "g", "n", "a"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {w: i + 3 for i, w in enumerate(words)}
    merges = [("r", "e"), ("g", "re"), ("gre", "e"), ("gree", "n")]
    for merged in merges:
        vocab.setdefault("".join(merged), len(vocab))
    merges += [("re", "d"), ("▁", "a"), ("▁", "red"), ("▁", "green")]
    vocab.setdefault("red", len(vocab))
    rules = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab, merges, unk_token="<unk>")
    )
    rules.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    rules.decoder = tokenizers.decoders.Metaspace(prepend_scheme="first")
    rules.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return rules


def saved(rules, tmp_path):
    rules.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_what_stands_before_a_text_is_found_and_put_there_once(tmp_path):
    tokenizer = load_tokenizer(saved(sentence_pieces(), tmp_path), end=2)

    assert tokenizer.bos == (1,)
    assert encode_prompt(tokenizer, "red") == [1, 5]
    assert encode_text(tokenizer, "red") == [1, 5, 2]
    assert encode_prompt(tokenizer, "") == [1]


def test_an_answer_is_encoded_as_it_would_follow_its_question(tmp_path):
    rules = sentence_pieces()
    tokenizer = load_tokenizer(saved(rules, tmp_path), end=2)

    prompt, completion = encode_answered(tokenizer, "a red", "green")

    assert [*prompt, *completion] == [*rules.encode("a red green").ids, 2]
    assert decode(tokenizer, completion) == "green"


def test_an_end_that_the_rules_put_behind_a_text_is_not_put_there_twice(tmp_path):
    rules = sentence_pieces()
    rules.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer = load_tokenizer(saved(rules, tmp_path), end=2)

    assert encode_text(tokenizer, "red") == [1, 5, 2]
    assert encode_prompt(tokenizer, "red") == [1, 5]


def test_texts_are_neither_cut_nor_filled_up(tmp_path, words):
    rules = words.rules.from_str(words.rules.to_str())
    rules.enable_truncation(2)
    rules.enable_padding(length=9)
    tokenizer = load_tokenizer(saved(rules, tmp_path))

    assert encode_prompt(tokenizer, "red blue green red") == [3, 4, 5, 3]


@pytest.mark.parametrize("end", [99, -1, 2**40])
def test_an_end_that_is_no_token_is_refused(tmp_path, words, end):
    path = saved(words.rules, tmp_path)

    with pytest.raises(ConfigError, match=f"id {end}"):
        load_tokenizer(path, end=end)


def test_a_start_beyond_the_vocabulary_counts_as_a_token(tmp_path):
    rules = sentence_pieces()
    rules.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 9999)]
    )

    assert load_tokenizer(saved(rules, tmp_path), end=2).num_tokens == 10_000


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"model": {"type": "BPE"}}', "\x00", "{"]
)
def test_what_is_no_tokenizer_is_refused_by_name(tmp_path, text):
    path = tmp_path / "tokenizer.json"
    path.write_text(text)

    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        load_tokenizer(path)


def test_a_tokenizer_with_other_ends_has_another_hash(words):
    assert tokenizer_hash(words._replace(end=PAD)) != tokenizer_hash(words)
    assert tokenizer_hash(words._replace(start=(1,))) != tokenizer_hash(words)
