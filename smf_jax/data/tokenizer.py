"""Tokenizers: trained on a corpus, kept with the model, named by a hash."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from smf_jax.config import ConfigError, require

PAD, EOS, UNKNOWN = 0, 1, 2
SPECIAL_TOKENS = ["<pad>", "<eot>", "<unk>"]  # at PAD, EOS and UNKNOWN
ANCHOR = "a"  # any word: what follows it is encoded as what follows a prompt


class Tokenizer(NamedTuple):
    """Rules that turn text into ids, and the ids that stand around a text."""

    rules: tokenizers.Tokenizer
    bos: tuple[int, ...] = ()  # before every text, for models trained that way
    eos: int = EOS  # after every text

    @property
    def num_tokens(self) -> int:
        """Rows that an embedding of all its ids needs."""
        return max([*self.rules.get_vocab().values(), *self.bos, self.eos]) + 1


def train_tokenizer(
    texts: Iterable[str], kind: Literal["word", "bpe"], vocab_size: int
) -> Tokenizer:
    """Returns a tokenizer of at most `vocab_size` tokens learnt from `texts`.

    "word" has one token for each word between spaces and suits a closed world;
    "bpe" is byte-level and can spell anything.
    """
    least = len(SPECIAL_TOKENS) + (256 if kind == "bpe" else 0)
    require(
        vocab_size >= least,
        f"data.vocab_size={vocab_size} is below the {least} tokens that a {kind} "
        "tokenizer needs",
    )
    match kind:
        case "word":
            unknown = SPECIAL_TOKENS[UNKNOWN]
            rules = tokenizers.Tokenizer(models.WordLevel(unk_token=unknown))
            rules.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
            trainer = trainers.WordLevelTrainer(
                vocab_size=vocab_size,
                special_tokens=SPECIAL_TOKENS,
                show_progress=False,
            )
        case "bpe":
            rules = tokenizers.Tokenizer(models.BPE())
            rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            rules.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=SPECIAL_TOKENS,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )
    rules.train_from_iterator(texts, trainer)
    return Tokenizer(rules)


def load_tokenizer(path: Path, end: int | str = EOS) -> Tokenizer:
    """Reads a tokenizer, and finds what it puts before a text.

    `end` is the token that ends a text, or its id.

    Raises:
      ConfigError: There is none, or it cannot serve: it is broken, has no token `end`,
        or a word's ids depend on the word before.
    """
    rules = read_rules(path)
    said = f"id {end}" if isinstance(end, int) else repr(end)
    end = rules.token_to_id(end) if isinstance(end, str) else end
    require(
        end is not None and 0 <= end < 2**31 and rules.id_to_token(end) is not None,
        f"{path}: {said}, which should end a text, is no token",
    )
    bare = rules.encode(ANCHOR, add_special_tokens=False).ids
    dressed = rules.encode(ANCHOR).ids
    before = len(dressed) - len(bare)
    while before > 0 and dressed[before : before + len(bare)] != bare:
        before -= 1
    followed = rules.encode(f"{ANCHOR} {ANCHOR}", add_special_tokens=False).ids
    require(
        followed[: len(bare)] == bare and len(followed) > len(bare),
        f"{path}: a word's ids depend on what follows, so answers cannot be continued",
    )
    return Tokenizer(rules, tuple(dressed[:before]), end)


def read_rules(path: Path) -> tokenizers.Tokenizer:
    """Reads the rules of a tokenizer, which neither cut texts nor fill them up.

    Raises:
      ConfigError: There is no such file, or it is broken.
    """
    require(path.is_file(), f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    # The library raises a bare Exception, which an except clause could not tell from
    # any other error, or panics; and some rules fail only where they are used.
    with ThreadPoolExecutor(max_workers=1) as thread:
        trying = thread.submit(_try_rules, text)
    error = trying.exception()
    if type(error) is Exception or type(error).__name__ == "PanicException":
        reason = str(error).strip().splitlines() or ["it panics"]
        raise ConfigError(f"{path}: no tokenizer ({reason[0]})") from error
    return trying.result()


def _try_rules(text: str) -> tokenizers.Tokenizer:
    rules = tokenizers.Tokenizer.from_str(text)
    rules.no_truncation()
    rules.no_padding()
    rules.encode(f"{ANCHOR} {ANCHOR}")
    return rules


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Returns 16 hex digits that name a tokenizer's vocabulary, rules and ends."""
    text = f"{tokenizer.rules.to_str()} {tokenizer.bos} {tokenizer.eos}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the ids of `text`, with those that stand around it."""
    return [*encode_prompt(tokenizer, text), tokenizer.eos]


def encode_answered(
    tokenizer: Tokenizer, prompt: str, completion: str
) -> tuple[list[int], list[int]]:
    """Returns the ids of a prompt, and those of its completion and the end token.

    The two are encoded apart, so that a prompt has the ids it has when asked alone.
    """
    return encode_prompt(tokenizer, prompt), encode_completion(tokenizer, completion)


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Returns the ids of a prompt that waits for its completion."""
    return [*tokenizer.bos, *_encode(tokenizer, prompt)]


def encode_completion(tokenizer: Tokenizer, completion: str) -> list[int]:
    """Returns the ids of a text that follows another after a space, and the end token.

    Some rules put a mark of a space before each text by themselves, so the text is
    encoded behind a word, and the ids of that word are taken away.
    """
    ids = _encode(tokenizer, f"{ANCHOR} {completion}")
    return [*ids[len(_encode(tokenizer, ANCHOR)) :], tokenizer.eos]


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.rules.encode(text, add_special_tokens=False).ids


def decode(tokenizer: Tokenizer, ids: Iterable) -> str:
    """Returns the text of the ids before the first end token."""
    before_end = []
    for token in ids:
        if token == tokenizer.eos:
            break
        before_end.append(int(token))
    return tokenizer.rules.decode(before_end).strip()
