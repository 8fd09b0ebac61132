"""Rows of tokens to make batches of, and what tests compare of batches."""

import itertools
import json

import jax
import numpy as np


def row(length: int):
    """Returns a row of `length` tokens that no row of another length has."""
    tokens = np.arange(length, dtype=np.int32) + 10 * length
    return {
        "tokens": tokens,
        "targets": tokens + 1,
        "weights": np.ones(length, np.float32),
        "records": np.full(length, length, np.int32),
    }


def rows_of(batch) -> list:
    """Returns the rows of a batch."""
    count = len(batch.tokens)
    return [jax.tree.map(lambda leaf, n=n: leaf[n], batch) for n in range(count)]


def texts_of(rows) -> list[tuple[int, ...]]:
    """Returns tokens and last target of each text in packed rows, sorted.

    Asserts that its positions count from 0, and that its tokens are adjacent.
    """
    found = []
    for row in rows:
        for segment in range(1, row.segments.max() + 1):
            (columns,) = np.nonzero(row.segments == segment)
            assert (np.diff(columns) == 1).all()
            assert row.positions[columns].tolist() == list(range(len(columns)))
            found.append((*row.tokens[columns].tolist(), int(row.targets[columns[-1]])))
    return sorted(found)


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
    """A list that counts how often an item was taken from it."""

    taken = 0

    def __getitem__(self, index):
        self.taken += 1
        return super().__getitem__(index)


def assert_resumes(make, done: int) -> None:
    """Asserts that batches continue from the state that a checkpoint saves."""
    batches = make()
    take(batches, done)
    state = json.loads(json.dumps(batches.get_state()))

    resumed = make()
    resumed.set_state(state)

    assert same(take(resumed, 5), take(batches, 5))


def assert_seeks(source: Counted, make) -> None:
    """Asserts that a resumed iterator reads the rows of its next batch alone."""
    batches = make()
    before = source.taken

    batches.set_state({"next_index": 3 * 10**9})
    next(batches)

    assert source.taken - before == 3
