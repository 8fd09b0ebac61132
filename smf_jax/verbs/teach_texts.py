"""Texts like those that a model is good at: its background, and others to measure."""

import itertools
from typing import NamedTuple

from rich.console import Console

from smf_jax.config import TeachConfig, require
from smf_jax.data.records import Text
from smf_jax.data.tokenizer import Tokenizer, encode_text
from smf_jax.evaluate.samples import sample_texts
from smf_jax.progress import progress
from smf_jax.runs import Run

ROWS, ROW_TOKENS = 384, 128
HELD_OUT = 6  # every so many-th text is measured, and is no background
LEAST = 2048  # tokens of the background: as many as half-keys of a calibrated memory


class Texts(NamedTuple):
    """Texts of at most `ROW_TOKENS` tokens."""

    background: list[Text]
    measured: list[Text]  # of other texts
    seq_len: int


def choose_texts(
    config: TeachConfig, run: Run, texts: list[Text], console: Console
) -> Texts:
    """Returns pieces of some texts, or, without any, texts that the model writes.

    Raises:
      ConfigError: There are too few texts, or the model writes too few.
    """
    tokenizer = run.tokenizer
    seq_len = min(ROW_TOKENS, run.lineage.context_length or ROW_TOKENS)
    width = seq_len - len(tokenizer.bos)
    if not texts:
        with progress("writing texts", ROWS, console) as tell:
            about = (run.model, tokenizer, ROWS, width, config.seed, tell)
            written = enumerate(sample_texts(*about))
            texts = [Text(f"own:{number}", text) for number, text in written]
    rest = [text for number, text in enumerate(texts) if number % HELD_OUT]
    background = _pieces(tokenizer, rest, width, ROWS - ROWS // HELD_OUT)
    tokens = sum(len(encode_text(tokenizer, text.text)) for text in background)
    holds = f"{config.model} wrote {len(texts):,} texts in {ROWS} tries, with"
    if config.background is not None:
        holds = f"{config.background} has {len(texts):,} texts, with"
    require(
        tokens >= LEAST,
        f"{holds} {tokens:,} tokens for the background, which needs {LEAST:,}: name "
        "more texts by --background",
    )
    measured = _pieces(tokenizer, texts[::HELD_OUT], width, ROWS // HELD_OUT)
    return Texts(background, measured, seq_len)


def _pieces(
    tokenizer: Tokenizer, texts: list[Text], width: int, rows: int
) -> list[Text]:
    """Returns pieces of texts: the first of each, then the second of each, and so on.

    If there are more texts than rows, they are evenly spaced.
    """
    texts = texts[:: -(-len(texts) // rows) or 1]
    cut = [_cut(tokenizer, text, width) for text in texts]
    turns = itertools.zip_longest(*cut)
    pieces = (piece for turn in turns for piece in turn if piece is not None)
    return list(itertools.islice(pieces, rows))


def _cut(tokenizer: Tokenizer, text: Text, width: int) -> list[Text]:
    """Returns the pieces of a text that have `width` tokens, or its only one."""
    offsets = tokenizer.rules.encode(text.text, add_special_tokens=False).offsets
    starts = [start for start, _ in offsets[::width]]
    if len(offsets) % width and len(starts) > 1:
        starts, end = starts[:-1], starts[-1]
    else:
        end = len(text.text)
    ends = [*starts[1:], end]
    cut = [text.text[slice(*span)] for span in zip(starts, ends, strict=True)]
    return [
        Text(f"{text.id}#{n}", piece) for n, piece in enumerate(cut) if piece.strip()
    ]
