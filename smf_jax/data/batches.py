"""Batches of tokens for pretraining: texts packed into rows, by grain."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import grain
import numpy as np
from jaxtyping import Float, Int, PyTree

from smf_jax.config import require
from smf_jax.data.corpus import Corpus, Example
from smf_jax.data.tokenizer import Tokenizer, encode_answered, encode_text

# Handing small rows over from a thread costs more than making them.
IN_LINE = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
CUT_LIMIT = 0.01  # share of examples that may be left out for being too long


class Batch(NamedTuple):
    """Rows of tokens; each target is the token that follows."""

    tokens: Int[np.ndarray, "batch seq"]
    targets: Int[np.ndarray, "batch seq"]
    weights: Float[np.ndarray, "batch seq"]  # of each target's loss; 0: not trained
    positions: Int[np.ndarray, "batch seq"]  # of each token in its text
    segments: Int[np.ndarray, "batch seq"]  # which text of the row; 0 is padding
    records: Int[np.ndarray, "batch seq"]  # which record a token is of, by its place
    # Places in a row of all targets with a loss, if they are fewer than its targets.
    loss_positions: Int[np.ndarray, "batch some"] | None = None
    prefix: PyTree | None = None  # what the lower part of a model makes of it, if known


# tokens, targets, weights, records: one text, or a part of one
Row = dict[str, np.ndarray]


def encode_example(
    tokenizer: Tokenizer,
    example: Example,
    loss_on: Literal["answer", "all"],
    record: int = 0,
) -> Row:
    """Returns the row of an example, with the loss on its completion or on all.

    `record` is the place of its record in a list of the caller's.
    """
    prompt, completion = encode_answered(tokenizer, example.prompt, example.completion)
    row = _row(prompt + completion, record)
    if loss_on == "answer":
        row["weights"][: max(len(prompt) - 1, 0)] = 0
    return row


def _row(ids: list[int], record: int) -> Row:
    ids = np.asarray(ids, np.int32)
    weights = np.ones(len(ids) - 1, np.float32)
    records = np.full(len(ids) - 1, record, np.int32)
    return {
        "tokens": ids[:-1],
        "targets": ids[1:],
        "weights": weights,
        "records": records,
    }


class Packed(NamedTuple):
    """Packed rows of a corpus."""

    facts: list[Batch]
    texts: list[Batch]
    dropped: int  # examples of facts that are too long for a row
    records: list[str]  # the ids of facts and texts, where `Batch.records` finds them


def pack_corpus(
    tokenizer: Tokenizer,
    corpus: Corpus,
    seq_len: int,
    loss_on: Literal["answer", "all"],
) -> Packed:
    """Returns packed rows of the corpus's facts, and of its texts.

    Rows hold whole facts, as many as fit; texts are cut into pieces of `seq_len`
    before they are packed, and their loss is on every token.

    Raises:
      ConfigError: More than 1 % of the facts are longer than `seq_len`.
    """
    records = [example.record for example in corpus.examples]
    records += [text.id for text in corpus.texts]
    facts = [
        encode_example(tokenizer, example, loss_on, place)
        for place, example in enumerate(corpus.examples)
    ]
    facts, dropped = drop_long(facts, seq_len)
    whole, ends = [], []  # a piece that fills its row needs no packing
    for place, text in enumerate(corpus.texts, len(corpus.examples)):
        ids = encode_text(tokenizer, text.text)
        for start in range(0, len(ids) - 1, seq_len):
            piece = _row(ids[start : start + seq_len + 1], place)
            (whole if len(piece["tokens"]) == seq_len else ends).append(piece)
    texts = [_one_segment(piece) for piece in whole] + _pack(ends, seq_len)
    facts = _pack(facts, seq_len)
    if facts and not texts:  # rows of a batch are alike, and texts have no places
        facts = with_loss_positions(facts)
    return Packed(facts, texts, dropped, records)


def hold_out(packed: Packed, share: float) -> tuple[Packed, list[Batch]]:
    """Returns packed rows without every so many of them, and those.

    It takes the first of every `1 / share` rows of facts, and of texts, by their
    places, so that the same rows are held out in every run on the same data.

    Raises:
      ConfigError: None is left to train on.
    """
    every = math.ceil(1 / share)
    kept, held = [], []
    for rows in (packed.facts, packed.texts):
        kept.append([row for place, row in enumerate(rows) if place % every])
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
        grain.MapDataset.source(rows).to_iter_dataset(IN_LINE),
        length_struct={name: seq_len for name in rows[0]},
        num_packing_bins=32,
    )
    return [
        Batch(
            tokens=row["tokens"],
            targets=row["targets"],
            weights=row["weights"],
            positions=row["tokens_positions"],
            segments=row["tokens_segment_ids"],
            records=row["records"],
        )
        for row in packed
    ]


def fits(row: Row, seq_len: int) -> bool:
    """Returns whether a row is at most `seq_len` tokens long."""
    return len(row["tokens"]) <= seq_len


def drop_long(rows: list[Row], seq_len: int) -> tuple[list[Row], int]:
    """Returns the rows that fit, and how many do not: no answer is ever cut.

    Raises:
      ConfigError: More than 1 % do not fit.
    """
    kept = [row for row in rows if fits(row, seq_len)]
    dropped = len(rows) - len(kept)
    require(
        dropped <= CUT_LIMIT * len(rows),
        f"{dropped} of {len(rows)} examples are longer than the context of {seq_len} "
        f"tokens, which is above {CUT_LIMIT:.0%}: shorten them or raise seq_len",
    )
    return kept, dropped


def packed_batches(
    facts: Sequence[Batch],
    texts: Sequence[Batch],
    fact_share: float,
    batch_size: int,
    seed: int,
) -> grain.DatasetIterator:
    """Returns an iterator over batches of packed rows, without end.

    Its `get_state()` is a few numbers, and `set_state()` reads nothing again.

    Args:
      facts: Packed rows of facts, shuffled anew in each round.
      texts: Packed rows of other texts. One of the two may be empty.
      fact_share: Share of the rows that are facts, where there are both.
      batch_size: Rows of a batch.
      seed: Of the order.

    Raises:
      ConfigError: Both are empty.
    """
    require(bool(facts or texts), "there are neither facts nor texts to train on")
    sources = [
        grain.MapDataset.source(rows).seed(seed + place).shuffle().repeat(None)
        for place, rows in enumerate((facts, texts))
        if rows
    ]
    source = sources[0]
    if len(sources) > 1:
        weights = [fact_share, 1 - fact_share]
        source = grain.MapDataset.mix(sources, weights)
    return iter(source.to_iter_dataset(IN_LINE).batch(batch_size))


def with_loss_positions(rows: Sequence[Batch]) -> list[Batch]:
    """Returns rows with the places of targets that have a loss, as many in each.

    Where a row has a loss on all of its targets, there are no places to name.

    Args:
      rows: Single rows, or some rows each, all of one width.
    """
    most = max(int((row.weights > 0).sum(-1).max()) for row in rows)
    if most == rows[0].weights.shape[-1]:
        return list(rows)
    # First the places with a loss; where a row has fewer, others fill it up.
    orders = (np.argsort(row.weights <= 0, -1, kind="stable") for row in rows)
    return [
        row._replace(loss_positions=order[..., :most].astype(np.int32))
        for row, order in zip(rows, orders, strict=True)
    ]
