"""What a run wrote into its memory: the rows before and after, and the file of them."""

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

ROWS_AT_ONCE = 8192  # that go from devices to the host


class Rows(NamedTuple):
    """Rows of one table, as they were and as they are now."""

    slots: Int[np.ndarray, " rows"]  # in order, all different
    before: Float[np.ndarray, "rows value_dim"]
    after: Float[np.ndarray, "rows value_dim"]


class Patch(NamedTuple):
    """The rows of each table that differ between a base and what was taught to it."""

    tables: tuple[Rows, ...]
    base_hash: str  # of the parameters that the rows before are of


Tables = Sequence[Float[np.ndarray, "num_slots value_dim"]]


def snapshot(table: Array) -> Callable[[], Array]:
    """Copies a table's shards to their hosts; the returned function restores it.

    Of replicated shards a host keeps one copy.
    """
    shape, sharding = table.shape, table.sharding
    copies, devices = {}, []
    for shard in table.addressable_shards:
        index = str(shard.index)
        devices.append((shard.device, index))
        if index not in copies:
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

    Tables may be spread over devices and processes, and those before lie in the memory
    of hosts, whence each is taken when it is compared: only what differs is ever in one
    place.
    """
    tables = []
    for old, new in zip(before, after, strict=True):
        new = jnp.asarray(new)
        old = jax.device_put(old, new.sharding)
        slots = np.flatnonzero(_whole(_differ(old, new)))
        rows = (_take(old, slots), _take(new, slots))
        tables.append(Rows(slots.astype(np.int32), *rows))
    return Patch(tuple(tables), base_hash)


@jax.jit
def _differ(old, new):
    bits = f"uint{8 * old.dtype.itemsize}"
    old, new = (jax.lax.bitcast_convert_type(table, bits) for table in (old, new))
    return (old != new).any(axis=1)


def _take(table: Array, slots: np.ndarray) -> np.ndarray:
    """Returns rows of a table on the host, some at a time and always as many."""
    parts = [np.zeros((0, table.shape[1]), table.dtype)]
    for start in range(0, len(slots), ROWS_AT_ONCE):
        some = slots[start : start + ROWS_AT_ONCE]
        padded = np.resize(some, ROWS_AT_ONCE)
        parts.append(_whole(_rows(table, padded))[: len(some)])
    return np.concatenate(parts)


@jax.jit
def _rows(table, slots):
    return table.at[slots].get(mode="promise_in_bounds")


def _whole(array: Array) -> np.ndarray:
    if isinstance(array.sharding, NamedSharding):
        whole = NamedSharding(array.sharding.mesh, PartitionSpec())
        array = jax.device_put(array, whole)
    return np.asarray(array)


def apply(tables: Tables, patch: Patch) -> list[np.ndarray]:
    """Returns tables with the rows of a patch written into them.

    Raises:
      ConfigError: The rows there are not those that the patch was made from.
    """
    _require_as_many(tables, patch)
    return [
        _replace(table, rows.slots, rows.before, rows.after)
        for table, rows in zip(tables, patch.tables, strict=True)
    ]


def revert(tables: Tables, patch: Patch) -> list[np.ndarray]:
    """Returns tables with the rows of a patch as they were before it, bit for bit.

    Raises:
      ConfigError: The rows there are not those that the patch wrote.
    """
    _require_as_many(tables, patch)
    return [
        _replace(table, rows.slots, rows.after, rows.before)
        for table, rows in zip(tables, patch.tables, strict=True)
    ]


def _require_as_many(tables: Tables, patch: Patch) -> None:
    there, known = len(tables), len(patch.tables)
    require(there == known, f"the patch is of {known} tables, but there are {there}")


def _replace(table, slots, there, new) -> np.ndarray:
    require(
        there.shape[1:] == table.shape[1:]
        and there.dtype == table.dtype
        and max(slots.tolist(), default=-1) < len(table),
        f"the patch has rows of {there.dtype}{list(there.shape[1:])} at slots "
        f"{slots.tolist()[:1]} to {slots.tolist()[-1:]}, but the table is "
        f"{table.dtype}{list(table.shape)}",
    )
    other = slots[(_bits(table[slots]) != _bits(there)).any(axis=1)]
    require(
        len(other) == 0,
        f"the table is not as the patch expects it at slots {other.tolist()[:5]}",
    )
    table = table.copy()
    table[slots] = new
    return table


def save(path: Path, patch: Patch) -> None:
    """Writes a patch as safetensors; the file appears whole or not at all."""
    tensors = {
        f"{place}/{name}": array
        for place, rows in enumerate(patch.tables)
        for name, array in rows._asdict().items()
    }
    metadata = {"base_hash": patch.base_hash, "content_hash": content_hash(patch)}
    write_atomic(path, serialize(tensors, {"patch": json.dumps(metadata)}))


def content_hash(patch: Patch) -> str:
    """Returns the SHA-256 of everything that a patch says."""
    digest = hashlib.sha256(patch.base_hash.encode())
    for rows in patch.tables:
        for array in rows:
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def load(path: Path) -> Patch:
    """Reads a patch.

    Raises:
      ConfigError: There is none, it is damaged, or its rows cannot be written.
    """
    require(path.is_file(), f"{path}: no such file")
    try:
        with safe_open(path, framework="np") as file:
            metadata = json.loads(file.metadata()["patch"])
            names = sorted(file.keys())
            count = len(names) // len(Rows._fields)
            tables = tuple(
                Rows(*(file.get_tensor(f"{place}/{name}") for name in Rows._fields))
                for place in range(count)
            )
            patch = Patch(tables, metadata["base_hash"])
            whole = content_hash(patch) == metadata["content_hash"]
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise ConfigError(f"{path} is no patch file: {error}") from error
    require(
        whole and len(names) == count * len(Rows._fields),
        f"{path} is damaged: it is not as it was written",
    )
    for rows in patch.tables:
        require(_is_sound(rows), f"{path}: slots and rows do not belong together")
        require(
            bool(np.isfinite(rows.after.astype(np.float32)).all()),
            f"{path} would write numbers that are not finite",
        )
    return patch


def _is_sound(rows: Rows) -> bool:
    slots, before, after = rows
    return (
        slots.dtype == np.int32
        and slots.ndim == 1
        and before.ndim == 2
        and len(before) == len(slots)
        and before.shape == after.shape
        and before.dtype == after.dtype
        and bool((slots >= 0).all() and (np.diff(slots) > 0).all())
    )


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")
