"""Batches for teaching: each fact comes with all its examples, by grain."""

from collections.abc import Sequence

import grain
import jax
import numpy as np

from smf_jax.data.batches import NO_THREADS, Batch, Row, with_loss_positions


def stack_facts(facts: Sequence[Sequence[Row]], seq_len: int) -> list[Batch]:
    """Returns the packed rows of each fact, equally many rows of each.

    The width, a multiple of 8, is the one with the fewest tokens, padding included, but
    at most `seq_len` rounded up; no example may be longer than that. Facts with fewer
    rows than others get rows of padding.
    """
    lengths = [[len(row["tokens"]) for row in rows] for rows in facts]
    narrowest = _round_up(max(map(max, lengths)))
    widest = _round_up(min(seq_len, max(map(sum, lengths))))

    def count_rows(width: int) -> int:
        return max(len(_first_fit(rows, width)) for rows in facts)

    # Of equal sizes the narrowest: its tokens attend to fewer masked ones.
    widths = range(narrowest, widest + 1, 8)
    width = min(widths, key=lambda width: (count_rows(width) * width, width))
    count = count_rows(width)
    packed = [_stack(_first_fit(rows, width), width, count) for rows in facts]
    return with_loss_positions(packed)


def _round_up(tokens: int) -> int:
    return -(-tokens // 8) * 8


def _first_fit(rows: Sequence[Row], width: int) -> list[list[Row]]:
    """Returns the examples of each packed row: each goes to the first with room."""
    bins, room = [], []
    for row in sorted(rows, key=lambda row: -len(row["tokens"])):
        length = len(row["tokens"])
        index = next((n for n, left in enumerate(room) if left >= length), len(bins))
        if index == len(bins):
            bins.append([])
            room.append(width)
        bins[index].append(row)
        room[index] -= length
    return bins


def _stack(bins: list[list[Row]], width: int, count: int) -> Batch:
    """Returns packed rows, and rows of padding up to `count`."""
    shape = (count, width)
    batch = Batch(*(np.zeros(shape, np.int32) for _ in range(6)))
    batch = batch._replace(weights=np.zeros(shape, np.float32))
    for number, rows in enumerate(bins):
        start = 0
        for segment, row in enumerate(rows, 1):
            length = len(row["tokens"])
            span = (number, slice(start, start + length))
            for name, part in row.items():
                getattr(batch, name)[span] = part
            batch.positions[span] = np.arange(length)
            batch.segments[span] = segment
            start += length
    return batch


def fact_batches(
    facts: Sequence[Batch], batch_size: int, seed: int
) -> grain.DatasetIterator:
    """Returns an endless iterator over batches of whole facts.

    All examples of a fact are in one batch, as in the paper, so that its slots are
    read many times there.
    """
    source = grain.MapDataset.source(facts).seed(seed).shuffle().repeat(None)
    batches = source.to_iter_dataset(NO_THREADS).batch(batch_size)
    return iter(
        batches.map(
            lambda batch: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        )
    )
