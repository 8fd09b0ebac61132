"""Checksums of arrays that do not depend on how the arrays are sharded.

Each device sums the words of its shard, each mixed with its index in the array:

    sum of mix(word ^ hash(index)),   hash(index) = mix(... mix(mix(seed ^ i) ^ j) ...)

for the word at [i, j, ...], modulo 2**32, once for each of four seeds. A sum has no
order, so meshes and devices do not matter, and only sums are exchanged. `mix` is one to
one, so a change within one word always shows; any other change is missed with
probability 2**-128.
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

# Arbitrary: the first digits of the square roots of 2, 3, 5 and 7.
SEEDS = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A)


def digests(arrays: PyTree) -> dict[str, str]:
    """Returns the type, shape and checksum of each array, by its name.

    Numpy arrays are allowed. If an array is sharded over several processes, every
    process has to call this, with the same tree.
    """
    leaves = {
        name: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        for name, leaf in named(arrays).items()
    }
    # All sums are started before the first is waited for.
    device_sums = [_sums(leaf) for leaf in leaves.values()]
    sums = np.array([_local_sum(each) for each in device_sums], np.uint32)
    is_global = np.array([not each.is_fully_addressable for each in device_sums])
    if is_global.any():
        with multihost.blame_lost_process():
            gathered = multihost_utils.process_allgather(sums)
        sums = np.where(is_global[:, None], gathered.sum(0, dtype=np.uint32), sums)
    return {
        name: f"{leaf.dtype}{list(leaf.shape)} {''.join(f'{part:08x}' for part in row)}"
        for (name, leaf), row in zip(leaves.items(), sums.tolist(), strict=True)
    }


def _sums(array: Shaped[Array | np.ndarray, "..."]) -> UInt32[Array, "devices seeds"]:
    if isinstance(array, np.ndarray):
        if array.dtype.itemsize >= 8:  # jax would convert it to 32 bits
            array = np.ascontiguousarray(array).reshape(*array.shape, 1)
            array = array.view(np.uint32)
        array = jnp.asarray(array)
    sharding = array.sharding
    if isinstance(sharding, NamedSharding):
        return sums_by_device(array, sharding.mesh, sharding.spec)
    (device,) = sharding.device_set
    return sums_by_device(array, Mesh([device], ("all",)), PartitionSpec())


def _local_sum(sums: UInt32[Array, "devices seeds"]) -> UInt32[np.ndarray, " seeds"]:
    shards = [np.asarray(shard.data) for shard in sums.addressable_shards]
    return np.concatenate(shards).sum(0, dtype=np.uint32)


# One program for each kind of array: one for a whole tree takes 0.02 s more to compile
# for each array in it. Devices exchange nothing: many collectives under way can starve
# each other of threads on a CPU.
@functools.partial(jax.jit, static_argnums=(1, 2))
def sums_by_device(
    array: Shaped[Array, "..."], mesh: Mesh, spec: PartitionSpec
) -> UInt32[Array, "devices seeds"]:
    """Returns the sums of each device's shard, in the order of the mesh.

    A word is an element's bits as an unsigned integer; a 64-bit element is two words,
    the low one first, along an added axis. Of replicas only one is summed.
    """
    split = [() if axes is None else axes for axes in spec]
    split = [axes if isinstance(axes, tuple) else (axes,) for axes in split]
    replicated = tuple(axis for axis in mesh.axis_names if axis not in sum(split, ()))

    def sum_shard(shard):
        words = _words(shard)
        index = [
            lax.broadcasted_iota(jnp.uint32, words.shape, axis)
            for axis in range(words.ndim)
        ]
        for axis, axes in enumerate(split):
            if axes:
                number = lax.axis_index(axes).astype(jnp.uint32)
                index[axis] += number * jnp.uint32(shard.shape[axis])
        mixed = tuple(_mix_words(words, index, jnp.uint32(seed)) for seed in SEEDS)
        # One reduction for all seeds: several would write the words to memory first.
        zeros = (jnp.uint32(0),) * len(SEEDS)
        sums = jnp.stack(lax.reduce(mixed, zeros, _add, tuple(range(words.ndim))))
        if replicated:
            sums = jnp.where(lax.axis_index(replicated) == 0, sums, 0)
        return sums[None]

    by_device = PartitionSpec(mesh.axis_names)
    return jax.shard_map(sum_shard, mesh=mesh, in_specs=spec, out_specs=by_device)(
        array
    )


@jax.jit  # traced once for all seeds
def _mix_words(words, index, seed):
    return mix(words ^ hash_index(index, seed))


def _words(array: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    if array.dtype == bool:
        return array.astype(jnp.uint32)
    bits = 8 * min(array.dtype.itemsize, 4)
    return lax.bitcast_convert_type(array, f"uint{bits}").astype(jnp.uint32)


def _add(left: tuple, right: tuple) -> tuple:
    return tuple(a + b for a, b in zip(left, right, strict=True))


def hash_index(
    index: Sequence[UInt32[Array, "..."]], seed: int | UInt32[Array, ""]
) -> UInt32[Array, "..."]:
    """Returns the hash of an element's index, given along each axis.

    Axis by axis, since a flat index may exceed 32 bits.
    """
    hashed = jnp.uint32(seed)
    for along_axis in index:
        hashed = mix(hashed ^ along_axis)
    return hashed


def mix(word: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Returns a bijective mix of a word's bits.

    Source: Appleby, MurmurHash3, the 32-bit finalizer.
    """
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def params_hash(params: PyTree) -> str:
    """Returns the SHA-256 of the names and digests of parameters, in hex."""
    return hash_of(digests(params))


def hash_of(digests: dict[str, str]) -> str:
    """Returns the SHA-256 of names and digests, in hex."""
    lines = [f"{name} {digest}\n" for name, digest in digests.items()]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
