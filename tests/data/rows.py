"""Rows of tokens to make batches of, and what is looked at in batches."""

import itertools

import numpy as np


def texts_of(rows) -> list[tuple[int, ...]]:
    """Returns tokens and last target of each text in packed rows, sorted."""
    found = []
    for row in rows:
        for segment in range(1, row.segments.max() + 1):
            here = row.segments == segment
            found.append((*row.tokens[here].tolist(), int(row.targets[here][-1])))
    return sorted(found)


def row(length: int):
    """Returns a row of `length` tokens that nothing else has."""
    tokens = np.arange(length, dtype=np.int32) + 10 * length
    weights = np.ones(length, np.float32)
    records = np.full(length, length, np.int32)
    return {
        "tokens": tokens,
        "targets": tokens + 1,
        "weights": weights,
        "records": records,
    }


def take(batches, count):
    """Returns the next batches."""
    return list(itertools.islice(batches, count))


def same(batches, others) -> bool:
    """Returns whether batches hold the same numbers."""
    pairs = zip(batches, others, strict=True)
    return all(
        np.array_equal(x, y) for pair in pairs for x, y in zip(*pair, strict=True)
    )


class Counted(list):
    """A list that counts how often something was taken from it."""

    taken = 0

    def __getitem__(self, place):
        self.taken += 1
        return super().__getitem__(place)
