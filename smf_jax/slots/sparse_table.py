"""Tables of which only written rows exist: what facts read, and what text reads."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from smf_jax.config import ConfigError, require
from smf_jax.slots import tensor_file
from smf_jax.slots.document_frequency import Background


class SlotCounts(NamedTuple):
    """How many documents or facts read each slot; slots that none reads are left out.

    >>> some = SlotCounts.of([np.array([3, 5]), np.array([5])])
    >>> some.slots.tolist(), some.counts.tolist(), some.total
    ([3, 5], [1, 2], 2)
    >>> some.at(np.array([4, 5])).tolist()
    [0, 2]
    """

    slots: Int[np.ndarray, " slots"]  # rising
    counts: Int[np.ndarray, " slots"]
    total: int  # documents or facts

    @classmethod
    def of(cls, reads: list[Int[np.ndarray, "..."]]) -> "SlotCounts":
        """Returns the counts, given the slots that each document or fact read."""
        none = np.zeros(0, np.int32)
        each = np.concatenate([none, *map(np.unique, reads)])
        slots, counts = np.unique(each, return_counts=True)
        return cls(slots.astype(np.int32), counts.astype(np.int32), len(reads))

    def at(self, slots: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
        """Returns the counts of some slots."""
        if len(self.slots) == 0:
            return np.zeros(len(slots), np.int32)
        place = np.minimum(np.searchsorted(self.slots, slots), len(self.slots) - 1)
        return np.where(self.slots[place] == slots, self.counts[place], 0)

    def plus(self, other: "SlotCounts") -> "SlotCounts":
        """Returns the counts of both together."""
        slots = np.union1d(self.slots, other.slots).astype(np.int32)
        counts = self.at(slots) + other.at(slots)
        return SlotCounts(slots, counts, self.total + other.total)


NOTHING_READ = SlotCounts.of([])


def background_of(
    slots: Int[np.ndarray, " rows"], documents: SlotCounts, facts: SlotCounts
) -> Background:
    """Returns the background of the rows of one table.

    `slots` are those of its rows; ids beyond the last slot are unused rows, which
    count as if every document read them, so that they are never selected.
    """
    unused = np.append(np.diff(slots), 0) == 0  # repeated ids are padding
    frequency = np.where(unused, documents.total, documents.at(slots))
    of_facts = np.where(unused, facts.total, facts.at(slots))
    return Background(
        frequency[None].astype(np.int32),
        np.int32(documents.total),
        of_facts[None].astype(np.int32),
        np.int32(facts.total),
    )


class Rows(NamedTuple):
    """The rows of a table that exist, and what the facts read that they are for."""

    slots: Int[np.ndarray, " rows"]  # rising
    facts: SlotCounts  # earlier ones included

    def plus(self, slots: Int[np.ndarray, " rows"], facts: SlotCounts) -> "Rows":
        """Returns the rows of these slots, too, and what more facts read."""
        both = np.union1d(self.slots, slots).astype(np.int32)
        return Rows(both, self.facts.plus(facts))

    def save(self, path: Path) -> None:
        """Writes them to a file, atomically."""
        arrays = {"rows": self.slots}
        arrays |= {"slots": self.facts.slots, "counts": self.facts.counts}
        tensor_file.save(path, "slots", arrays, {"total": self.facts.total})

    @classmethod
    def load(cls, path: Path) -> "Rows":
        """Reads a file.

        Raises:
          ConfigError: The file is missing, damaged or of another kind.
        """
        arrays, metadata = tensor_file.load(path, "slots")
        facts, rows = _counts(path, "slots", arrays, metadata), arrays.get("rows")
        require(
            rows is not None
            and rows.dtype == np.int32
            and bool((np.diff(rows, prepend=-1) > 0).all()),
            f"{path} is damaged: its rows are not in order",
        )
        return cls(rows, facts)


NO_ROWS = Rows(NOTHING_READ.slots, NOTHING_READ)


def save(path: Path, kind: str, counts: SlotCounts, **provenance) -> None:
    """Writes counts to a file, atomically."""
    arrays = {"slots": counts.slots, "counts": counts.counts}
    tensor_file.save(path, kind, arrays, {"total": counts.total, **provenance})


def load_usage(path: Path, model_hash: str) -> SlotCounts:
    """Reads what the background read of one model.

    Raises:
      ConfigError: The file is missing or damaged, or belongs to another model.
    """
    counts, about = load(path, "usage")
    require(
        about.get("model_hash") == model_hash,
        f"{path} was collected with model {about.get('model_hash')}, not {model_hash}: "
        "run `smf usage` again",
    )
    return counts


def load(path: Path, kind: str) -> tuple[SlotCounts, dict]:
    """Reads counts, and where they come from.

    Raises:
      ConfigError: The file is missing, damaged or of another kind.
    """
    arrays, metadata = tensor_file.load(path, kind)
    return _counts(path, kind, arrays, metadata), metadata


def _counts(
    path: Path, kind: str, arrays: tensor_file.Arrays, metadata: dict
) -> SlotCounts:
    """Returns the counts that a file holds, or raises `ConfigError`."""
    try:
        counts = SlotCounts(arrays["slots"], arrays["counts"], metadata["total"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a {kind} file: lacks {error}") from error
    require(
        counts.slots.dtype == counts.counts.dtype == np.int32
        and counts.slots.shape == counts.counts.shape
        and bool((np.diff(counts.slots, prepend=-1) > 0).all()),
        f"{path} is damaged: slots and counts do not match",
    )
    return counts
