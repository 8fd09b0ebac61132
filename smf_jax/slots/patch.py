"""The table rows that a run changed, and the file that records them."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from smf_jax.atomic import write_atomic
from smf_jax.config import ConfigError, require

ROWS_PER_TRANSFER = 8192  # from devices to the host

Tables = Sequence[Float[np.ndarray, "num_slots value_dim"]]


class TableDiff(NamedTuple):
    """The rows of one table that changed."""

    slots: Int[np.ndarray, " rows"]  # rising
    before: Float[np.ndarray, "rows value_dim"]
    after: Float[np.ndarray, "rows value_dim"]


class Patch(NamedTuple):
    """The rows of each table that differ between a base model and a finetuned one."""

    tables: tuple[TableDiff, ...]
    base_hash: str  # of the base model's parameters


def snapshot(table: Array) -> Callable[[], Array]:
    """Copies a table's shards to their hosts; the returned function restores it."""
    shape, sharding = table.shape, table.sharding
    copies, devices = {}, []
    for shard in table.addressable_shards:
        index = str(shard.index)
        devices.append((shard.device, index))
        if index not in copies:  # one copy of replicated shards
            copies[index] = np.array(shard.data)

    def restore() -> Array:
        shards = [jax.device_put(copies[index], device) for device, index in devices]
        return jax.make_array_from_single_device_arrays(shape, sharding, shards)

    return restore


def diff(
    before: Iterable[Float[Array | np.ndarray, "num_slots value_dim"]],
    after: Sequence[Float[Array | np.ndarray, "num_slots value_dim"]],
    base_hash: str,
) -> Patch:
    """Returns the rows of which any bit differs.

    Tables may be split over devices and processes: only the changed rows are gathered.
    An iterator `before` can restore one table at a time.
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
        parts.append(_to_host(_gather_rows(table, padded))[: len(some)])
    return np.concatenate(parts)


@jax.jit
def _gather_rows(table, slots):
    return table.at[slots].get(mode="promise_in_bounds")


def _to_host(array: Array) -> np.ndarray:
    if isinstance(array.sharding, NamedSharding):
        replicated = NamedSharding(array.sharding.mesh, PartitionSpec())
        array = jax.device_put(array, replicated)
    return np.asarray(array)


def apply(tables: Tables, patch: Patch) -> list[np.ndarray]:
    """Returns copies of the base model's tables with the patch applied.

    Raises:
      ConfigError: The tables do not hold the rows from before the patch.
    """
    return _replace_rows(tables, patch)


def revert(tables: Tables, patch: Patch) -> list[np.ndarray]:
    """Returns copies of patched tables with the patch reverted, bit for bit.

    Raises:
      ConfigError: The tables do not hold the rows from after the patch.
    """
    swapped = [TableDiff(slots, after, before) for slots, before, after in patch.tables]
    return _replace_rows(tables, patch._replace(tables=tuple(swapped)))


def _replace_rows(tables: Tables, patch: Patch) -> list[np.ndarray]:
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
            f"the table is not as the patch expects it at slots {other.tolist()[:5]}",
        )
        table = table.copy()
        table[slots] = after
        replaced.append(table)
    return replaced


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")


def save(path: Path, patch: Patch) -> None:
    """Writes a patch as safetensors, atomically."""
    tensors = {
        f"{number}/{name}": array
        for number, table in enumerate(patch.tables)
        for name, array in table._asdict().items()
    }
    metadata = {"base_hash": patch.base_hash, "content_hash": content_hash(patch)}
    write_atomic(path, serialize(tensors, {"patch": json.dumps(metadata)}))


def content_hash(patch: Patch) -> str:
    """Returns the SHA-256 of a patch."""
    digest = hashlib.sha256(patch.base_hash.encode())
    for table in patch.tables:
        for array in table:
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def load(path: Path) -> Patch:
    """Reads a patch.

    Raises:
      ConfigError: The file is missing or damaged, or holds rows that are not finite.
    """
    require(path.is_file(), f"{path}: no such file")
    try:
        with safe_open(path, framework="np") as file:
            metadata = json.loads(file.metadata()["patch"])
            names = sorted(file.keys())
            count = len(names) // len(TableDiff._fields)
            tables = tuple(
                TableDiff(
                    *(file.get_tensor(f"{n}/{name}") for name in TableDiff._fields)
                )
                for n in range(count)
            )
            patch = Patch(tables, metadata["base_hash"])
            is_intact = content_hash(patch) == metadata["content_hash"]
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise ConfigError(f"{path} is not a patch file: {error}") from error
    require(
        is_intact and len(names) == count * len(TableDiff._fields),
        f"{path} is damaged: checksum mismatch",
    )
    for table in patch.tables:
        require(_is_valid(table), f"{path} is damaged: slots and rows do not match")
        require(
            bool(np.isfinite(table.after.astype(np.float32)).all()),
            f"{path} would write rows that are not finite",
        )
    return patch


def _is_valid(table: TableDiff) -> bool:
    slots, before, after = table
    return (
        slots.dtype == np.int32
        and slots.ndim == 1
        and before.ndim == 2
        and len(before) == len(slots)
        and before.shape == after.shape
        and before.dtype == after.dtype
        and bool((slots >= 0).all() and (np.diff(slots) > 0).all())
    )
