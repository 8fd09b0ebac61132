"""Tokenizers: trained on a corpus or loaded from a file, identified by a hash."""

import hashlib
import itertools
import re
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from smf_jax.config import ConfigError, require
from smf_jax.data.chat_template import ChatTemplate

PAD, EOS, UNKNOWN = 0, 1, 2
SPECIAL_TOKENS = ["<pad>", "<eot>", "<unk>"]  # at PAD, EOS and UNKNOWN
PROBE = "a"  # a word that shows what a tokenizer does around any other
LONG_RUN = re.compile(r"\S{257}|\s{257}")
PIECE = re.compile(r"\s{0,256}\S{1,256}|\s{1,256}")
STRANGER = "\U0010ffff"  # no character, which no vocabulary has


class Tokenizer(NamedTuple):
    """A tokenizer of the `tokenizers` library, with the tokens around a text."""

    rules: tokenizers.Tokenizer
    bos: tuple[int, ...] = ()  # before every text, for models trained that way
    eos: int = EOS  # after every text and answer
    other_ends: tuple[int, ...] = ()  # of answers, besides EOS
    template: ChatTemplate | None = None
    file: str | None = None  # content of the file it was loaded from
    vocab_size: int | None = None  # of the model; None: it covers every id

    @property
    def num_tokens(self) -> int:
        """The smallest vocabulary size that covers every id."""
        ids = (*self.rules.get_vocab().values(), *self.bos, self.eos, *self.other_ends)
        return max(ids) + 1

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return (self.eos, *self.other_ends)

    @property
    def json(self) -> str:
        """The content of its `tokenizer.json`, as it was loaded if it was."""
        return self.rules.to_str(pretty=True) if self.file is None else self.file


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
        texts = (piece for text in texts for piece in _pieces(text))
    rules.train_from_iterator(texts, trainer)
    rules.encode_special_tokens = True  # a control token in a user's text is text
    return Tokenizer(rules)


def _pieces(text: str) -> list[str]:
    """Returns a text in pieces if it has a long run without a space.

    Training takes time that grows with the square of the longest such run.
    """
    return PIECE.findall(text) if LONG_RUN.search(text) else [text]


def load_tokenizer(
    path: Path,
    eos: int | str = EOS,
    other_ends: tuple[int, ...] = (),
    bos: tuple[int, ...] | None = None,
) -> Tokenizer:
    """Reads a tokenizer, without truncation and padding.

    `eos` is the token that ends a text, or its id. `bos` are the tokens before a text,
    by default those that the file puts there.

    Raises:
      ConfigError: The file is missing or broken, has no token `eos`, or the ids of a
        word depend on the word after it.
    """
    require(path.is_file(), f"{path}: no such file")
    try:
        text = path.read_bytes().decode()  # line endings as they are
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error.reason})") from error
    return parse_tokenizer(text, path, eos, other_ends, bos)


def parse_tokenizer(
    text: str,
    path: Path,
    eos: int | str,
    other_ends: tuple[int, ...] = (),
    bos: tuple[int, ...] | None = None,
) -> Tokenizer:
    """Returns the tokenizer that a file describes: see `load_tokenizer`."""
    rules = _read_rules(text, path)
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
    bos = tuple(special[:start]) if bos is None else bos
    return Tokenizer(rules, bos, eos, other_ends, file=text)


def _read_rules(text: str, path: Path) -> tokenizers.Tokenizer:
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
    rules.encode_special_tokens = True  # as in `train_tokenizer`
    rules.encode(f"{PROBE} {PROBE}")
    return rules


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Returns 16 hex digits that identify a tokenizer, its BOS and its ends."""
    text = f"{tokenizer.rules.to_str()} {tokenizer.bos} {tokenizer.ends}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the ids of `text`, with BOS and EOS."""
    return [*encode_prompt(tokenizer, text), tokenizer.eos]


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Returns the ids of a prompt, with BOS and without EOS."""
    return [*tokenizer.bos, *_encode(tokenizer, prompt)]


def encode_completion(
    tokenizer: Tokenizer, completion: str, prompt: str | None = None
) -> list[int]:
    """Returns the ids of a text that follows a prompt and a space, with EOS.

    It is encoded apart from the prompt, whose ids then do not depend on it. Name a
    `prompt` only where no space follows it.
    """
    if prompt is not None:
        return [*_continue(tokenizer, prompt, completion), tokenizer.eos]
    # Some tokenizers mark a space before each text: encode it after a word, and drop
    # the ids of that word.
    ids = _encode(tokenizer, f"{PROBE} {completion}")
    return [*ids[len(_encode(tokenizer, PROBE)) :], tokenizer.eos]


def _continue(tokenizer: Tokenizer, prompt: str, completion: str) -> list[int]:
    start = _encode(tokenizer, prompt)
    joined = _encode(tokenizer, prompt + completion)
    if joined[: len(start)] == start:
        return joined[len(start) :]
    return encode_part(tokenizer, completion)  # a token spans the end of the prompt


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    rules, limit = tokenizer.rules, tokenizer.vocab_size
    ids = rules.encode(text, add_special_tokens=False).ids
    if limit is not None and max(ids, default=0) >= limit:
        token = rules.id_to_token(max(ids))
        raise ConfigError(
            f"{text[:80]!r} has the token {token!r}, of id {max(ids)}, and the model "
            f"knows {limit} tokens (vocab_size)"
        )
    # BPE spells control tokens, but other models may know them as words.
    if rules.encode_special_tokens and not isinstance(rules.model, models.BPE):
        held = {t: id for t, id in control_tokens(tokenizer).items() if id in ids}
        unknown = rules.encode(STRANGER, add_special_tokens=False).ids if held else []
        held = [token for token, id in held.items() if id not in unknown]
        require(
            not held,
            f"{text[:80]!r} holds {', '.join(map(repr, held))}, which is a control "
            "token to this tokenizer in any text: leave it out",
        )
    return ids


def encode_with_controls(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the ids of a text in which control tokens are control tokens."""
    tokenizer.rules.encode_special_tokens = False
    try:
        return _encode(tokenizer, text)
    finally:
        tokenizer.rules.encode_special_tokens = True


def encode_part(tokenizer: Tokenizer, text: str, is_first: bool = False) -> list[int]:
    """Returns the ids of a part of a text, by default one that follows another."""
    rules = tokenizer.rules.pre_tokenizer
    steps = rules if isinstance(rules, pre_tokenizers.Sequence) else [rules]
    # These mark a space before the first word of a text.
    marking = [step for step in steps if getattr(step, "prepend_scheme", "") == "first"]
    for step in marking:
        step.prepend_scheme = "first" if is_first else "never"
    try:
        return _encode(tokenizer, text)
    finally:
        for step in marking:
            step.prepend_scheme = "first"


def unknown_words(tokenizer: Tokenizer, text: str) -> list[str]:
    """Returns the words of a text that the tokenizer cannot spell."""
    unknown = getattr(tokenizer.rules.model, "unk_token", None)
    id = None if unknown is None else tokenizer.rules.token_to_id(unknown)
    words = dict.fromkeys(text.split())
    return [word for word in words if id in _encode(tokenizer, word)]


def control_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Returns the control tokens, such as EOS, with their ids."""
    added = tokenizer.rules.get_added_tokens_decoder().items()
    return {token.content: id for id, token in added if token.special}


def decode(
    tokenizer: Tokenizer,
    ids: Iterable,
    ends: Collection[int],
    stop: Collection[str] = (),
) -> str:
    """Returns the text of the ids before the first end, and before a stop string."""
    before_end = itertools.takewhile(lambda token: token not in ends, ids)
    text = tokenizer.rules.decode([*map(int, before_end)])
    starts = [text.index(string) for string in stop if string in text]
    return text[: min(starts, default=None)].strip()
