"""Tokenizers: trained on a corpus or loaded from a file, identified by a hash."""

import hashlib
import itertools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from smf_jax.config import ConfigError, require

PAD, EOS, UNKNOWN = 0, 1, 2
SPECIAL_TOKENS = ["<pad>", "<eot>", "<unk>"]  # at PAD, EOS and UNKNOWN
PROBE = "a"  # a word that shows what a tokenizer does around any other


class Tokenizer(NamedTuple):
    """A tokenizer of the `tokenizers` library, with its BOS and EOS ids."""

    rules: tokenizers.Tokenizer
    bos: tuple[int, ...] = ()  # before every text, for models trained that way
    eos: int = EOS  # after every text

    @property
    def num_tokens(self) -> int:
        """The smallest vocabulary size that covers every id."""
        return max([*self.rules.get_vocab().values(), *self.bos, self.eos]) + 1


def train_tokenizer(
    texts: Iterable[str], kind: Literal["word", "bpe"], vocab_size: int
) -> Tokenizer:
    """Returns a tokenizer of at most `vocab_size` tokens trained on `texts`.

    "word" has one token per whitespace-separated word, for a closed vocabulary; "bpe"
    is byte-level and can encode any text.
    """
    least = len(SPECIAL_TOKENS) + (256 if kind == "bpe" else 0)
    require(
        vocab_size >= least,
        f"data.vocab_size={vocab_size} is below the {least} tokens that a {kind} "
        "tokenizer needs",
    )
    options = dict(
        vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, show_progress=False
    )
    if kind == "word":
        unknown = SPECIAL_TOKENS[UNKNOWN]
        rules = tokenizers.Tokenizer(models.WordLevel(unk_token=unknown))
        rules.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(**options)
    else:
        rules = tokenizers.Tokenizer(models.BPE())
        rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        rules.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **options)
    rules.train_from_iterator(texts, trainer)
    return Tokenizer(rules)


def load_tokenizer(path: Path, eos: int | str = EOS) -> Tokenizer:
    """Reads a tokenizer without truncation and padding, and finds its BOS tokens.

    `eos` is the token that ends a text, or its id.

    Raises:
      ConfigError: The file is missing or broken, has no token `eos`, or the ids of a
        word depend on the word after it.
    """
    rules = _read_rules(path)
    eos_name = f"id {eos}" if isinstance(eos, int) else repr(eos)
    eos = rules.token_to_id(eos) if isinstance(eos, str) else eos
    require(
        eos is not None and 0 <= eos < 2**31 and rules.id_to_token(eos) is not None,
        f"{path}: EOS {eos_name} is not in the vocabulary",
    )
    plain = rules.encode(PROBE, add_special_tokens=False).ids
    special = rules.encode(PROBE).ids
    start = len(special) - len(plain)  # of the word, after the BOS tokens
    while start > 0 and special[start : start + len(plain)] != plain:
        start -= 1
    continued = rules.encode(f"{PROBE} {PROBE}", add_special_tokens=False).ids
    require(
        continued[: len(plain)] == plain and len(continued) > len(plain),
        f"{path}: a word's ids depend on what follows, so a prompt cannot be continued",
    )
    return Tokenizer(rules, tuple(special[:start]), eos)


def _read_rules(path: Path) -> tokenizers.Tokenizer:
    require(path.is_file(), f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error.reason})") from error
    # The library raises a bare Exception, which no except clause can tell from other
    # errors, or panics; and some files fail only when a text is encoded.
    with ThreadPoolExecutor(max_workers=1) as thread:
        parsing = thread.submit(_parse_rules, text)
    error = parsing.exception()
    if type(error) is Exception or type(error).__name__ == "PanicException":
        reason = str(error).strip().splitlines() or ["panic"]
        raise ConfigError(f"{path}: not a tokenizer ({reason[0]})") from error
    return parsing.result()


def _parse_rules(text: str) -> tokenizers.Tokenizer:
    rules = tokenizers.Tokenizer.from_str(text)
    rules.no_truncation()
    rules.no_padding()
    rules.encode(f"{PROBE} {PROBE}")
    return rules


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Returns 16 hex digits that identify a tokenizer, its BOS and its EOS."""
    text = f"{tokenizer.rules.to_str()} {tokenizer.bos} {tokenizer.eos}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the ids of `text`, with BOS and EOS."""
    return [*encode_prompt(tokenizer, text), tokenizer.eos]


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Returns the ids of a prompt, with BOS and without EOS."""
    return [*tokenizer.bos, *_encode(tokenizer, prompt)]


def encode_completion(tokenizer: Tokenizer, completion: str) -> list[int]:
    """Returns the ids of a text that follows a prompt and a space, with EOS.

    It is encoded apart from the prompt, whose ids then do not depend on it.
    """
    # Some tokenizers mark a space before each text: encode it after a word, and drop
    # the ids of that word.
    ids = _encode(tokenizer, f"{PROBE} {completion}")
    return [*ids[len(_encode(tokenizer, PROBE)) :], tokenizer.eos]


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.rules.encode(text, add_special_tokens=False).ids


def decode(tokenizer: Tokenizer, ids: Iterable) -> str:
    """Returns the text of the ids before the first EOS."""
    before_eos = itertools.takewhile(lambda token: token != tokenizer.eos, ids)
    return tokenizer.rules.decode([*map(int, before_eos)]).strip()
