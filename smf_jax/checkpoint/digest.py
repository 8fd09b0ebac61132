"""What names the content of arrays, wherever and however they are placed.

The devices that hold an array sum its words, each mixed with where it stands:

    sum of mix(word ^ place),   place = mix(... mix(mix(seed ^ i) ^ j) ...)

for the word at [i, j, ...], in 32 bits that wrap, once for each of four seeds. A sum
does not know its order, so neither mesh nor devices matter, and sums are all that
travels. Since `mix` is one to one, a change within one word always shows; any other
goes unseen with a chance of 2**-128.
"""

import functools
import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, Shaped, UInt32

from smf_jax import multihost
from smf_jax.tree import named

# Any would do: the first digits of the square roots of 2, 3, 5 and 7.
SEEDS = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A)


def digests(arrays: PyTree) -> dict[str, str]:
    """Returns the type, shape and checksum of each array, by its name.

    Arrays may be of numpy. Where one lies on devices of several processes, every
    process calls this, with the same tree.
    """
    leaves = {
        name: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        for name, leaf in named(arrays).items()
    }
    # None is waited for before all are under way.
    parts = [_parts(leaf) for leaf in leaves.values()]
    sums = np.array([_sum_here(part) for part in parts], np.uint32)
    spread = np.array([not part.is_fully_addressable for part in parts])
    if spread.any():
        with multihost.blame_lost_process():
            of_all = multihost_utils.process_allgather(sums)
        sums = np.where(spread[:, None], of_all.sum(0, dtype=np.uint32), sums)
    return {
        name: f"{leaf.dtype}{list(leaf.shape)} {''.join(f'{part:08x}' for part in row)}"
        for (name, leaf), row in zip(leaves.items(), sums.tolist(), strict=True)
    }


def _parts(array: Shaped[Array | np.ndarray, "..."]) -> UInt32[Array, "devices seeds"]:
    """Returns the sums over what each device holds of an array."""
    if isinstance(array, np.ndarray):
        array = jnp.asarray(_halves(array))
    placed = array.sharding
    if isinstance(placed, NamedSharding):
        return sums_by_device(array, placed.mesh, placed.spec)
    (device,) = placed.device_set
    return sums_by_device(array, Mesh([device], ("all",)), PartitionSpec())


def _halves(array: np.ndarray) -> np.ndarray:
    # jax makes 32 bits of 64, unless told not to.
    if array.dtype.itemsize < 8:
        return array
    return np.ascontiguousarray(array).reshape(*array.shape, 1).view(np.uint32)


def _sum_here(parts: UInt32[Array, "devices seeds"]) -> UInt32[np.ndarray, " seeds"]:
    here = [np.asarray(shard.data) for shard in parts.addressable_shards]
    return np.concatenate(here).sum(0, dtype=np.uint32)


# Compiled once for each kind of array, not for each tree: a program takes 0.02 s more
# to compile for each array in it. Nothing in it waits for another device, as many
# programs that do, all under way, can starve each other of threads on a CPU.
@functools.partial(jax.jit, static_argnums=(1, 2))
def sums_by_device(
    array: Shaped[Array, "..."], mesh: Mesh, spec: PartitionSpec
) -> UInt32[Array, "devices seeds"]:
    """Returns the sums over what each device holds, in the order of the mesh.

    A word is an element's bits as an unsigned number. An element of 64 bits is two,
    the low one first, along one axis more. Of devices that hold the same, one sums.
    """
    of_axes = [() if axes is None else axes for axes in spec]
    of_axes = [axes if isinstance(axes, tuple) else (axes,) for axes in of_axes]
    rest = tuple(axis for axis in mesh.axis_names if axis not in sum(of_axes, ()))

    def of_shard(shard):
        words = _words(shard)
        index = [
            lax.broadcasted_iota(jnp.uint32, words.shape, axis)
            for axis in range(words.ndim)
        ]
        for axis, axes in enumerate(of_axes):
            if axes:
                before = lax.axis_index(axes).astype(jnp.uint32)
                index[axis] += before * jnp.uint32(shard.shape[axis])
        mixed = tuple(_mixed(words, index, jnp.uint32(seed)) for seed in SEEDS)
        # As one reduction: each alone would write its words out before it sums them.
        zeros = (jnp.uint32(0),) * len(SEEDS)
        sums = jnp.stack(lax.reduce(mixed, zeros, _add, tuple(range(words.ndim))))
        if rest:
            sums = jnp.where(lax.axis_index(rest) == 0, sums, 0)
        return sums[None]

    by_device = PartitionSpec(mesh.axis_names)
    return jax.shard_map(of_shard, mesh=mesh, in_specs=spec, out_specs=by_device)(array)


@jax.jit  # traced once for all seeds: small programs, where a run has many kinds
def _mixed(words, index, seed):
    return mix(words ^ place(index, seed))


def _words(array: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    if array.dtype == bool:
        return array.astype(jnp.uint32)
    bits = 8 * min(array.dtype.itemsize, 4)
    return lax.bitcast_convert_type(array, f"uint{bits}").astype(jnp.uint32)


def _add(left: tuple, right: tuple) -> tuple:
    return tuple(a + b for a, b in zip(left, right, strict=True))


def place(
    index: Sequence[UInt32[Array, "..."]], seed: int | UInt32[Array, ""]
) -> UInt32[Array, "..."]:
    """Returns the hash of a position, given its index along each axis.

    Axis by axis, as a table may have more elements than 32 bits can number.
    """
    at = jnp.uint32(seed)
    for along_axis in index:
        at = mix(at ^ along_axis)
    return at


def mix(word: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Returns a word's bits, mixed one to one.

    Source: Appleby, MurmurHash3, the 32-bit finalizer.
    """
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def params_hash(params: PyTree) -> str:
    """Returns the SHA-256, in hex, of the names and digests of parameters."""
    return hash_of(digests(params))


def hash_of(named: dict[str, str]) -> str:
    """Returns the SHA-256, in hex, of names with their digests."""
    lines = [f"{name} {digest}\n" for name, digest in named.items()]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
