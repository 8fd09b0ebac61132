"""The table rows that a run changed, and the file that records them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from smf_jax.config import ConfigError, require
from smf_jax.slots import tensor_file
from smf_jax.slots.sparse_table import SlotCounts

ROWS_PER_TRANSFER = 8192  # from devices to the host

Tables = Sequence[Float[np.ndarray, "num_slots value_dim"]]


class TableDiff(NamedTuple):
    """The rows of one table that changed."""

    slots: Int[np.ndarray, " rows"]  # rising
    before: Float[np.ndarray, "rows value_dim"]
    after: Float[np.ndarray, "rows value_dim"]


class Origin(NamedTuple):
    """How a patch was made; the run that it was made by can be made again from it."""

    facts: int  # how many this patch teaches
    kind: str  # of the memory
    num_slots: int
    layers: list[int]
    finetune: dict[str, Any]  # the configuration
    corpus_hash: str | None  # of the questions
    usage_hash: str | None


class Patch(NamedTuple):
    """The rows of each table that differ between a base model and a finetuned one."""

    tables: tuple[TableDiff, ...]
    base_hash: str  # of the base model's parameters
    origin: Origin | None = None
    # Of a table of which only written rows exist: how many facts of this patch read
    # each slot, and the slots that had no row before.
    reads: SlotCounts | None = None
    added: Int[np.ndarray, " slots"] | None = None

    @property
    def rows(self) -> int:
        """Rows of all tables that differ."""
        return sum(len(table.slots) for table in self.tables)


def snapshot(table: Array) -> Callable[[], Array]:
    """Copies a table's shards to their hosts; the returned function restores it."""
    shape, sharding, copies = table.shape, table.sharding, {}
    for shard in table.addressable_shards:
        index = str(shard.index)
        if index not in copies:  # one copy of replicated shards
            copies[index] = np.array(shard.data)

    def restore() -> Array:
        return jax.make_array_from_callback(
            shape, sharding, lambda index: copies[str(index)]
        )

    return restore


def diff(
    before: Iterable[Float[Array | np.ndarray, "num_slots value_dim"]],
    after: Sequence[Float[Array | np.ndarray, "num_slots value_dim"]],
    base_hash: str,
) -> Patch:
    """Returns the rows of which any bit differs.

    Tables may be split over devices and processes: only the changed rows are gathered.
    An iterator `before` can restore one table at a time.

    >>> before, after = np.zeros((4, 2), np.float32), np.zeros((4, 2), np.float32)
    >>> after[2] = 1
    >>> patch = diff([before], [after], base_hash="")
    >>> patch.tables[0].slots.tolist()
    [2]
    >>> (reverted,) = revert(apply([before], patch), patch)
    >>> np.array_equal(reverted, before)
    True
    """
    tables = []
    for old, new in zip(before, after, strict=True):
        new = jnp.asarray(new)
        old = jax.device_put(old, new.sharding)
        slots = np.flatnonzero(_to_host(_differ(old, new)))
        rows = (_take_rows(old, slots), _take_rows(new, slots))
        tables.append(TableDiff(slots.astype(np.int32), *rows))
    return Patch(tuple(tables), base_hash)


@jax.jit
def _differ(old, new):
    bits = f"uint{8 * old.dtype.itemsize}"
    old, new = (jax.lax.bitcast_convert_type(table, bits) for table in (old, new))
    return (old != new).any(axis=1)


def _take_rows(table: Array, slots: np.ndarray) -> np.ndarray:
    """Returns rows of a table on the host, in transfers of equal size."""
    parts = [np.zeros((0, table.shape[1]), table.dtype)]
    for start in range(0, len(slots), ROWS_PER_TRANSFER):
        some = slots[start : start + ROWS_PER_TRANSFER]
        padded = np.resize(some, ROWS_PER_TRANSFER)
        rows = jnp.take(table, padded, axis=0, mode="clip")
        parts.append(_to_host(rows)[: len(some)])
    return np.concatenate(parts)


def _to_host(array: Array) -> np.ndarray:
    if isinstance(array.sharding, NamedSharding):
        replicated = NamedSharding(array.sharding.mesh, PartitionSpec())
        array = jax.device_put(array, replicated)
    return np.asarray(array)


def at_slots(patch: Patch, slots: Sequence[Int[np.ndarray, " rows"]]) -> Patch:
    """Returns a patch by slots, given one by rows, and the slots of the rows."""
    tables = zip(patch.tables, slots, strict=True)
    moved = (rows._replace(slots=of_table[rows.slots]) for rows, of_table in tables)
    return patch._replace(tables=tuple(moved))


def at_rows(patch: Patch, slots: Sequence[Int[np.ndarray, " rows"]]) -> Patch:
    """Returns a patch by rows, given one by slots, and the slots of the rows, rising.

    Raises:
      ConfigError: A slot has no row.
    """
    moved = []
    for table, of_table in zip(patch.tables, slots, strict=True):
        absent = np.setdiff1d(table.slots, of_table)
        require(
            len(absent) == 0,
            f"the table has no row for slots {absent[:5].tolist()} of the patch",
        )
        rows = np.searchsorted(of_table, table.slots).astype(np.int32)
        moved.append(table._replace(slots=rows))
    return patch._replace(tables=tuple(moved))


def apply(tables: Tables, patch: Patch) -> list[np.ndarray]:
    """Returns copies of the base model's tables with the patch applied.

    Raises:
      ConfigError: The tables do not hold the rows from before the patch.
    """
    require(
        len(tables) == len(patch.tables),
        f"the patch is for {len(patch.tables)} tables, not for {len(tables)}",
    )
    replaced = []
    for table, (slots, before, after) in zip(tables, patch.tables, strict=True):
        require(
            before.shape[1:] == table.shape[1:]
            and before.dtype == table.dtype
            and max(slots.tolist(), default=-1) < len(table),
            f"the patch has rows of {before.dtype}{list(before.shape[1:])} at slots "
            f"{slots.tolist()[:1]} to {slots.tolist()[-1:]}, but the table is "
            f"{table.dtype}{list(table.shape)}",
        )
        other = slots[(_bits(table[slots]) != _bits(before)).any(axis=1)]
        require(
            len(other) == 0,
            f"the table is not as the patch expects it at rows {other.tolist()[:5]}",
        )
        table = table.copy()
        table[slots] = after
        replaced.append(table)
    return replaced


def revert(tables: Tables, patch: Patch) -> list[np.ndarray]:
    """Returns copies of patched tables with the patch reverted, bit for bit.

    Raises:
      ConfigError: The tables do not hold the rows from after the patch.
    """
    swapped = [TableDiff(slots, after, before) for slots, before, after in patch.tables]
    return apply(tables, patch._replace(tables=tuple(swapped)))


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")


def save(path: Path, patch: Patch) -> None:
    """Writes a patch to a file, atomically."""
    arrays = {
        f"{number}/{name}": array
        for number, table in enumerate(patch.tables)
        for name, array in table._asdict().items()
        if name != "before" or array.view(np.uint8).any()  # zeros are left out
    }
    metadata = {"base_hash": patch.base_hash, "tables": len(patch.tables)}
    metadata["rows"] = patch.rows
    if patch.origin is not None:
        metadata |= patch.origin._asdict()
    if patch.reads is not None:
        of_facts = {
            "reads/slots": patch.reads.slots,
            "reads/counts": patch.reads.counts,
        }
        arrays |= of_facts | {"added": patch.added}
    tensor_file.save(path, "patch", arrays, metadata)


def load(path: Path) -> Patch:
    """Reads a patch.

    Raises:
      ConfigError: The file is missing or damaged, or holds rows that are not finite.
    """
    arrays, metadata = tensor_file.load(path, "patch")
    try:
        tables = []
        for number in range(metadata["tables"]):
            slots, after = arrays[f"{number}/slots"], arrays[f"{number}/after"]
            before = arrays.get(f"{number}/before", np.zeros_like(after))
            tables.append(TableDiff(slots, before, after))
        patch = Patch(tuple(tables), metadata["base_hash"], *_about(arrays, metadata))
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a patch file: lacks {error}") from error
    for slots, before, after in tables:
        require(
            slots.dtype == np.int32
            and before.ndim == 2
            and slots.shape == before.shape[:1]
            and (before.shape, before.dtype) == (after.shape, after.dtype)
            and bool((np.diff(slots, prepend=-1) > 0).all()),
            f"{path} is damaged: slots and rows do not match",
        )
        require(
            bool(np.isfinite(after.astype(np.float32)).all()),
            f"{path} would write rows that are not finite",
        )
    return patch


def _about(arrays, metadata) -> tuple:
    """Returns how a patch was made, and what its facts read, as far as it says so."""
    if "finetune" not in metadata:
        return ()
    origin, reads = Origin(**{name: metadata[name] for name in Origin._fields}), None
    if "added" in arrays:
        of_facts = (arrays["reads/slots"], arrays["reads/counts"])
        reads = SlotCounts(*of_facts, origin.facts)
    return origin, reads, arrays.get("added")
