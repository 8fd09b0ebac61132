"""Batches of taught facts: each with all that states it, by grain."""

from collections.abc import Sequence

import grain
import jax
import numpy as np

from smf_jax.data.batches import IN_LINE, Batch, Row, with_loss_positions


def stack_facts(facts: Sequence[Sequence[Row]], seq_len: int) -> list[Batch]:
    """Returns the rows of each fact, packed by themselves, as many rows of each fact.

    Of the widths up to `seq_len` it takes the one that has the fewest tokens, padding
    included. A fact with fewer texts than another is given rows of padding.

    Args:
      facts: The texts of each fact, none longer than `seq_len`.
      seq_len: The widest row that may be made, but for being a multiple of 8.
    """
    lengths = [[len(row["tokens"]) for row in rows] for rows in facts]
    least = _in_eights(max(map(max, lengths)))
    most = _in_eights(min(seq_len, max(map(sum, lengths))))
    widths = range(least, most + 1, 8)

    def most_rows(width: int) -> int:
        return max(len(_first_fit(rows, width)) for rows in facts)

    # In short rows tokens attend to fewer others that are none of theirs.
    width = min(widths, key=lambda width: (most_rows(width) * width, width))
    count = most_rows(width)
    packed = [_stack(_first_fit(rows, width), width, count) for rows in facts]
    return with_loss_positions(packed)


def _in_eights(tokens: int) -> int:
    return -(-tokens // 8) * 8


def _first_fit(rows: Sequence[Row], width: int) -> list[list[Row]]:
    """Returns the texts of each packed row: every text goes to the first with room."""
    bins, room = [], []
    for row in sorted(rows, key=lambda row: -len(row["tokens"])):
        length = len(row["tokens"])
        place = next((n for n, left in enumerate(room) if left >= length), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(width)
        bins[place].append(row)
        room[place] -= length
    return bins


def _stack(bins: list[list[Row]], width: int, count: int) -> Batch:
    """Returns packed rows of a width, filled up to so many by rows of padding."""
    shape = (count, width)
    batch = Batch(*(np.zeros(shape, np.int32) for _ in range(6)))
    batch = batch._replace(weights=np.zeros(shape, np.float32))
    for number, rows in enumerate(bins):
        start = 0
        for segment, row in enumerate(rows, 1):
            here = (number, slice(start, start + len(row["tokens"])))
            for name, part in row.items():
                getattr(batch, name)[here] = part
            batch.positions[here] = np.arange(len(row["tokens"]))
            batch.segments[here] = segment
            start += len(row["tokens"])
    return batch


def fact_batches(
    facts: Sequence[Batch], batch_size: int, seed: int
) -> grain.DatasetIterator:
    """Returns an iterator over batches, each with all the texts of a few facts.

    What states one fact stands together, as in the paper: its own slots are then read
    many times in a batch.

    Args:
      facts: The rows of each fact, as `stack_facts` has them.
      batch_size: Facts in a batch.
      seed: Of their order.
    """
    source = grain.MapDataset.source(facts).seed(seed).shuffle().repeat(None)
    batches = source.to_iter_dataset(IN_LINE).batch(batch_size)
    return iter(batches.map(lambda batch: jax.tree.map(_flatten, batch)))


def _flatten(leaf: np.ndarray) -> np.ndarray:
    return leaf.reshape(-1, *leaf.shape[2:])
