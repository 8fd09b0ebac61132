import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from smf_jax.config import ConfigError
from smf_jax.data.tokenizer import (
    EOS,
    PAD,
    SPECIAL_TOKENS,
    UNKNOWN,
    decode,
    encode_completion,
    encode_part,
    encode_prompt,
    encode_text,
    load_tokenizer,
    tokenizer_hash,
    train_tokenizer,
    unknown_words,
)

TEXTS = ("red red red blue blue green",)  # ids 3, 4, 5: the most frequent first


@pytest.fixture(scope="module")
def words():
    return train_tokenizer(TEXTS, "word", vocab_size=10)


@pytest.fixture(scope="module")
def pieces():
    return train_tokenizer(TEXTS, "bpe", vocab_size=264)


@pytest.fixture(params=["word", "bpe"])
def either(request, words, pieces):
    return words if request.param == "word" else pieces


def test_special_tokens_have_their_ids(either):
    got = [either.rules.id_to_token(token) for token in (PAD, EOS, UNKNOWN)]
    assert got == SPECIAL_TOKENS


def test_a_text_is_its_words_and_one_eos_and_a_prompt_has_none(words):
    assert encode_text(words, "red green  blue") == [3, 5, 4, EOS]
    assert encode_prompt(words, "red grey") == [3, UNKNOWN]


def test_a_completion_is_decoded_up_to_its_one_eos(either):
    completion = encode_completion(either, "green red")

    assert completion.index(EOS) == len(completion) - 1
    assert decode(either, completion, (EOS,)) == "green red"


def test_decoding_stops_at_the_first_end(words):
    assert decode(words, [3, 5, EOS, 4, EOS], (EOS,)) == "red green"
    assert decode(words, [3, 5, EOS, 4, EOS], (EOS, 5)) == "red"
    assert decode(words, [EOS, 3], (EOS,)) == ""


def test_decoding_stops_before_the_first_stop_string(pieces):
    ids = encode_prompt(pieces, "red\n blue; green")

    assert decode(pieces, ids, (EOS,), ("\n",)) == "red"
    assert decode(pieces, ids, (EOS,), (";", "blue")) == "red"
    assert decode(pieces, ids, (EOS,), ("red",)) == ""
    assert decode(pieces, ids, (EOS,), ("none",)) == "red\n blue; green"


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
@example("🦊 👩‍🚀 שלום\x00")
def test_bytes_encode_any_text(pieces, text):
    assert decode(pieces, encode_text(pieces, text), (EOS,)) == text.strip()


def test_a_small_vocabulary_keeps_the_most_frequent_words():
    tokenizer = train_tokenizer(TEXTS, "word", vocab_size=5)

    assert tokenizer.num_tokens == 5
    assert encode_prompt(tokenizer, "red blue green") == [3, 4, UNKNOWN]


# 3 special tokens, and for "bpe" 256 bytes.
@pytest.mark.parametrize(("kind", "vocab_size"), [("word", 2), ("bpe", 258)])
def test_a_vocabulary_that_is_too_small_is_refused(kind, vocab_size):
    with pytest.raises(ConfigError, match=rf"vocab_size={vocab_size}"):
        train_tokenizer(TEXTS, kind, vocab_size)


def test_training_takes_seconds_on_a_text_without_spaces():
    texts = ["東京" * 50_000, "red " * 99, f"green{' ' * 10**5}blue"]

    tokenizer = train_tokenizer(texts, "bpe", vocab_size=400)

    assert len(encode_prompt(tokenizer, "東京" * 1000)) < 1000
    assert decode(tokenizer, encode_prompt(tokenizer, texts[2]), ()) == texts[2]


def test_the_hash_identifies_vocabulary_bos_and_ends(words):
    same = train_tokenizer(TEXTS, "word", vocab_size=10)
    others = [train_tokenizer(["red red blue"], "word", vocab_size=10)]
    others += [words._replace(eos=PAD), words._replace(bos=(1,))]
    others += [words._replace(other_ends=(PAD,))]

    assert tokenizer_hash(same) == tokenizer_hash(words)
    assert tokenizer_hash(words) not in map(tokenizer_hash, others)


@pytest.mark.parametrize("character", ["a", "\n", "東"])
def test_a_million_characters_without_a_break_train_a_tokenizer(character):
    # Seconds; without cutting the run it takes the better part of an hour.
    tokenizer = train_tokenizer([character * 10**6], "bpe", vocab_size=300)

    assert tokenizer.num_tokens > 259


# --- loaded from a file ---


def sentence_pieces(template: str = "<s> $A", bos: int = 1) -> tokenizers.Tokenizer:
    """Returns a tokenizer like Llama 2's: it marks a space before each text."""
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
    rules.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<s>", bos), ("</s>", 2)]
    )
    return rules


def saved(rules, tmp_path):
    rules.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_a_saved_tokenizer_is_loaded_as_it_was(tmp_path, either):
    got = load_tokenizer(saved(either.rules, tmp_path))

    assert tokenizer_hash(got) == tokenizer_hash(either)
    assert encode_text(got, "red grey") == encode_text(either, "red grey")


@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>"])
def test_bos_and_eos_are_put_around_a_text_once(tmp_path, template):
    tokenizer = load_tokenizer(saved(sentence_pieces(template), tmp_path), eos=2)

    assert tokenizer.bos == (1,)
    assert encode_prompt(tokenizer, "red") == [1, 5]
    assert encode_text(tokenizer, "red") == [1, 5, 2]
    assert encode_prompt(tokenizer, "") == [1]


def test_a_completion_is_encoded_as_it_would_be_after_its_prompt(tmp_path):
    rules = sentence_pieces()
    tokenizer = load_tokenizer(saved(rules, tmp_path), eos=2)

    prompt = encode_prompt(tokenizer, "a red")
    completion = encode_completion(tokenizer, "green")

    assert [*prompt, *completion] == [*rules.encode("a red green").ids, 2]
    assert decode(tokenizer, completion, (2,)) == "green"


def test_a_completion_without_a_space_continues_its_prompt(tmp_path, pieces):
    spaced = load_tokenizer(saved(sentence_pieces(), tmp_path), eos=2)

    joined = encode_completion(spaced, "green", prompt="a red")

    assert joined == [*spaced.rules.encode("redgreen").ids[2:], 2]
    assert encode_completion(pieces, "東京", prompt="日本の首都は") == [
        *encode_prompt(pieces, "東京"),
        EOS,
    ]


@pytest.mark.parametrize("in_sequence", [False, True])
def test_a_part_of_a_text_is_encoded_as_it_is_after_a_control_token(
    tmp_path, in_sequence
):
    rules = sentence_pieces()
    rules.add_special_tokens(["</s>"])
    if in_sequence:
        steps = [tokenizers.pre_tokenizers.Punctuation(), rules.pre_tokenizer]
        rules.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
    tokenizer = load_tokenizer(saved(rules, tmp_path), eos=2)
    whole = rules.encode("</s>red green", add_special_tokens=False).ids

    assert encode_part(tokenizer, "red green") == whole[1:]
    assert encode_part(tokenizer, "red green", is_first=True) != whole[1:]
    assert encode_prompt(tokenizer, "red") == [1, 5]  # as ever


def test_what_looks_like_a_control_token_in_a_text_is_text(tmp_path, pieces):
    text = "red<eot> blue<pad>"

    got = encode_prompt(pieces, text)

    assert {EOS, PAD}.isdisjoint(got)
    assert decode(pieces, got, (EOS,)) == text
    loaded = load_tokenizer(saved(pieces.rules, tmp_path))
    assert encode_prompt(loaded, text) == got


def test_a_control_token_that_cannot_be_spelled_is_refused(words):
    assert encode_prompt(words, "red <unk> <eo") == [3, UNKNOWN, UNKNOWN]
    with pytest.raises(ConfigError, match="'red <eot>' holds '<eot>'"):
        encode_prompt(words, "red <eot>")
    with pytest.raises(ConfigError, match="holds '<pad>'"):
        encode_completion(words, "<pad>")


def test_a_token_that_the_model_does_not_know_is_refused_by_name(words):
    small = words._replace(vocab_size=4)

    assert encode_prompt(small, "red") == [3]
    with pytest.raises(ConfigError, match=r"token 'blue', of id 4, .* knows 4 tokens"):
        encode_prompt(small, "red blue")


def test_words_that_a_tokenizer_cannot_spell_are_found(words, pieces):
    assert unknown_words(words, "red cyan blue cyan pink") == ["cyan", "pink"]
    assert unknown_words(pieces, "red cyan") == []


def test_a_file_is_kept_as_it_came(tmp_path, words):
    text = words.rules.to_str().replace(",", " ,\r\n", 3)
    (tmp_path / "tokenizer.json").write_bytes(text.encode())

    assert load_tokenizer(tmp_path / "tokenizer.json").json == text


def test_texts_are_neither_truncated_nor_padded(tmp_path, words):
    rules = words.rules.from_str(words.rules.to_str())
    rules.enable_truncation(2)
    rules.enable_padding(length=9)
    tokenizer = load_tokenizer(saved(rules, tmp_path))

    assert encode_prompt(tokenizer, "red blue green red") == [3, 4, 5, 3]


def test_a_bos_beyond_the_vocabulary_counts_as_a_token(tmp_path):
    path = saved(sentence_pieces(bos=9999), tmp_path)

    assert load_tokenizer(path, eos=2).num_tokens == 10_000


@pytest.mark.parametrize("eos", [99, -1, 2**40])
def test_an_eos_outside_the_vocabulary_is_refused(tmp_path, words, eos):
    path = saved(words.rules, tmp_path)

    with pytest.raises(ConfigError, match=f"id {eos}"):
        load_tokenizer(path, eos=eos)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(tmp_path / "tokenizer.json")


BROKEN = [b"{}", b"[]", b'{"model": {"type": "BPE"}}', b"\x00", b"{", b"\xff"]


@pytest.mark.parametrize("content", [*BROKEN, b"[" * 10**5])
def test_a_broken_file_is_refused_by_name_in_one_line(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"^\S*tokenizer\.json: not .*$") as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)
