"""Rows of tokens to make batches of, and what is looked at in batches."""

import itertools
import json

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


def assert_go_on(make, done: int) -> None:
    """Asserts that batches go on from the state that a checkpoint keeps of them."""
    batches = make()
    take(batches, done)
    state = json.loads(json.dumps(batches.get_state()))

    again = make()
    again.set_state(state)

    assert same(take(again, 5), take(batches, 5))


def assert_nothing_read_again(source, make) -> None:
    """Asserts that to go on takes from a `Counted` source the rows of a batch alone."""
    batches = make()
    before = source.taken

    batches.set_state({"next_index": 3 * 10**9})
    next(batches)

    assert source.taken - before == 3


class Counted(list):
    """A list that counts how often something was taken from it."""

    taken = 0

    def __getitem__(self, place):
        self.taken += 1
        return super().__getitem__(place)
