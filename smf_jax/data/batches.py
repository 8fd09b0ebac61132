"""Batches for pretraining: facts and texts packed into rows, by grain."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import grain
import numpy as np
from jaxtyping import Float, Int, PyTree

from smf_jax.config import DataConfig, require
from smf_jax.data.corpus import Corpus
from smf_jax.data.prompts import PLAIN, Example, PromptFormat, encode_answered
from smf_jax.data.tokenizer import Tokenizer, encode_text

# Passing small rows between threads costs more than making them.
NO_THREADS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
MAX_DROPPED = 0.01  # share of examples that may exceed the context


class Batch(NamedTuple):
    """Rows of tokens; each target is the token that follows."""

    tokens: Int[np.ndarray, "batch seq"]
    targets: Int[np.ndarray, "batch seq"]
    weights: Float[np.ndarray, "batch seq"]  # of each target's loss; 0: not trained
    positions: Int[np.ndarray, "batch seq"]  # of each token in its text
    segments: Int[np.ndarray, "batch seq"]  # the token's text in its row; 0: padding
    records: Int[np.ndarray, "batch seq"]  # index of the token's record
    # Columns that include every target with a loss; None: all columns.
    loss_positions: Int[np.ndarray, "batch some"] | None = None
    prefix: PyTree | None = None  # cached outputs of the frozen lower layers
    # Rows of the table that are the row's fact's own; None: slots are scored each step.
    own_rows: Int[np.ndarray, "batch own"] | None = None


# One encoded text, or a part of one: tokens, targets, weights, records.
Row = dict[str, np.ndarray]


def encode_example(
    tokenizer: Tokenizer,
    example: Example,
    loss_on: Literal["answer", "all"],
    record: int = 0,
    form: PromptFormat = PLAIN,
    trains_end: bool = True,
) -> Row:
    """Returns an encoded example, with the loss on its completion or on all tokens.

    The last token, which ends an answer, is only trained if `trains_end`.
    """
    prompt, completion = encode_answered(tokenizer, form, example)
    row = _row(prompt + completion, record)
    if loss_on == "answer":
        row["weights"][: max(len(prompt) - 1, 0)] = 0
    if not trains_end:
        row["weights"][-1] = 0
    return row


def _row(ids: list[int], record: int) -> Row:
    ids = np.asarray(ids, np.int32)
    return {
        "tokens": ids[:-1],
        "targets": ids[1:],
        "weights": np.ones(len(ids) - 1, np.float32),
        "records": np.full(len(ids) - 1, record, np.int32),
    }


class Packed(NamedTuple):
    """Packed rows of a corpus."""

    facts: list[Batch]
    texts: list[Batch]
    dropped: int  # examples of facts that exceed a row
    records: list[str]  # the ids of facts and texts that `Batch.records` indexes


def pack_corpus(tokenizer: Tokenizer, corpus: Corpus, config: DataConfig) -> Packed:
    """Returns packed rows of a corpus's facts, and of its texts.

    An example is never cut; at most 1 % may exceed `seq_len`. A text is cut into pieces
    of `seq_len`, and its loss is on every token.
    """
    seq_len = config.seq_len
    facts = [
        encode_example(tokenizer, example, config.loss_on, index)
        for index, example in enumerate(corpus.examples)
    ]
    facts, dropped = drop_long(facts, seq_len)
    full, ends = [], []  # a piece that fills a row needs no packing
    for index, text in enumerate(corpus.texts, len(corpus.examples)):
        ids = encode_text(tokenizer, text.text)
        for start in range(0, len(ids) - 1, seq_len):
            piece = _row(ids[start : start + seq_len + 1], index)
            (full if len(piece["tokens"]) == seq_len else ends).append(piece)
    texts = [_one_segment(piece) for piece in full] + _pack(ends, seq_len)
    facts = _pack(facts, seq_len)
    # All rows of a batch have loss positions or none has, and texts have none.
    if facts and not texts:
        facts = with_loss_positions(facts)
    records = [example.record for example in corpus.examples]
    return Packed(facts, texts, dropped, records + [text.id for text in corpus.texts])


def hold_out(packed: Packed, share: float) -> tuple[Packed, list[Batch]]:
    """Returns packed rows without every `1 / share`-th one, and those.

    The same rows of the same data are held out in every run.
    """
    every = math.ceil(1 / share)
    kept, held = [], []
    for rows in (packed.facts, packed.texts):
        kept.append([row for index, row in enumerate(rows) if index % every])
        held += rows[::every]
    require(
        bool(kept[0] or kept[1]),
        f"held_out={share} of {len(held)} rows leaves none to train on",
    )
    return packed._replace(facts=kept[0], texts=kept[1]), held


def _one_segment(row: Row) -> Batch:
    length = len(row["tokens"])
    positions, ones = np.arange(length, dtype=np.int32), np.ones(length, np.int32)
    return Batch(**row, positions=positions, segments=ones)


def _pack(rows: list[Row], seq_len: int) -> list[Batch]:
    if not rows:
        return []
    packed = grain.experimental.FirstFitPackIterDataset(
        grain.MapDataset.source(rows).to_iter_dataset(NO_THREADS),
        length_struct={name: seq_len for name in rows[0]},
        num_packing_bins=32,
    )
    return [
        Batch(
            **{name: row[name] for name in rows[0]},
            positions=row["tokens_positions"],
            segments=row["tokens_segment_ids"],
        )
        for row in packed
    ]


def fits(row: Row, seq_len: int) -> bool:
    """Returns whether a row has at most `seq_len` tokens."""
    return len(row["tokens"]) <= seq_len


def drop_long(rows: list[Row], seq_len: int) -> tuple[list[Row], int]:
    """Returns the rows that fit and the number of others; raises if above 1 %."""
    kept = [row for row in rows if fits(row, seq_len)]
    dropped = len(rows) - len(kept)
    require(
        dropped <= MAX_DROPPED * len(rows),
        f"{dropped} of {len(rows)} examples are longer than the context of {seq_len} "
        f"tokens, which is above {MAX_DROPPED:.0%}: shorten them or raise seq_len",
    )
    return kept, dropped


def packed_batches(
    packed: Packed, config: DataConfig, seed: int
) -> grain.DatasetIterator:
    """Returns an endless iterator over batches of packed rows.

    Facts and texts are each shuffled anew in each epoch; `fact_share` of the rows are
    facts, if there are both. `get_state()` is a few numbers, and `set_state()` reads no
    row.
    """
    sources = [
        grain.MapDataset.source(rows)
        .seed((seed + index) % 2**32)
        .shuffle()
        .repeat(None)
        for index, rows in enumerate((packed.facts, packed.texts))
        if rows
    ]
    require(len(sources) > 0, "there are neither facts nor texts to train on")
    source = sources[0]
    if len(sources) > 1:
        shares = [config.fact_share, 1 - config.fact_share]
        source = grain.MapDataset.mix(sources, shares)
    return iter(source.to_iter_dataset(NO_THREADS).batch(config.batch_size))


def with_loss_positions(rows: Sequence[Batch]) -> list[Batch]:
    """Returns rows of one width with `loss_positions`, equally many in each.

    If any row has a loss on all of its targets, rows are returned as they are.
    """
    most = max(int((row.weights > 0).sum(-1).max()) for row in rows)
    if most == rows[0].weights.shape[-1]:
        return list(rows)
    # Positions with a loss come first; rows with fewer are padded with others.
    orders = (np.argsort(row.weights <= 0, -1, kind="stable") for row in rows)
    return [
        row._replace(loss_positions=order[..., :most].astype(np.int32))
        for row, order in zip(rows, orders, strict=True)
    ]
