"""Tokenizers: trained on a corpus, kept with the model, named by a hash."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from smf_jax.config import ConfigError, require

PAD, END, UNKNOWN = 0, 1, 2
SPECIAL_TOKENS = ["<pad>", "<eot>", "<unk>"]  # at PAD, END and UNKNOWN


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
            tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL_TOKENS[UNKNOWN]))
            tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
            trainer = trainers.WordLevelTrainer(
                vocab_size=vocab_size,
                special_tokens=SPECIAL_TOKENS,
                show_progress=False,
            )
        case "bpe":
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=SPECIAL_TOKENS,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads the tokenizer of a run."""
    require(path.is_file(), f"{path}: no such file")
    text = path.read_text(encoding="utf-8")
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    return Tokenizer.from_str(text)


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Returns 16 hex digits that name a tokenizer's vocabulary and rules."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16]


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the ids of `text` and the end token."""
    return [*tokenizer.encode(text).ids, END]


def encode_answered(
    tokenizer: Tokenizer, prompt: str, completion: str
) -> tuple[list[int], list[int]]:
    """Returns the ids of a prompt, and those of its completion and the end token.

    The two are encoded apart, so that a prompt has the ids it has when asked alone.
    """
    return encode_prompt(tokenizer, prompt), encode_text(tokenizer, " " + completion)


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Returns the ids of a prompt that waits for its completion."""
    return tokenizer.encode(prompt).ids


def decode(tokenizer: Tokenizer, ids: Iterable) -> str:
    """Returns the text of the ids before the first end token."""
    before_end = []
    for token in ids:
        if token == END:
            break
        before_end.append(int(token))
    return tokenizer.decode(before_end).strip()
