import itertools
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from smf_jax import checkpoint
from smf_jax.checkpoint.digest import SEEDS, hash_index, mix, sums_by_device
from tests.checkpoint import digest_process
from tests.reference import digest as reference
from tests.tiny import AS_FOR_USERS, bits

TYPES = ["float32", "bfloat16", "float16", "int32", "int16", "int8"]
TYPES += ["uint32", "uint16", "uint8", "float64", "int64", "uint64"]
SPECS = [P(), P("data"), P(None, "model"), P("data", "model"), P("model", "data")]
SPECS += [P(("data", "model")), P(None, ("model", "data"))]


def digest(array) -> str:
    return checkpoint.digests({"it": array})["it"]


def table(dtype="float32") -> np.ndarray:
    """Returns 8 x 16 numbers, some of them negative."""
    return np.arange(-20, 108).reshape(8, 16).astype(jnp.dtype(dtype))


def grid(*shape):
    return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize("dtype", [*TYPES, "bool"])
def test_it_is_the_sum_that_the_reference_takes_word_by_word(dtype):
    array = table(dtype)

    assert digest(array) == reference.digest(array)
    if array.itemsize < 8:
        assert digest(jnp.asarray(array)) == reference.digest(array)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 3, 5), (2, 1, 2, 1, 2)])
def test_it_is_the_same_sum_for_any_number_of_axes(shape):
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)

    assert digest(jnp.asarray(array)) == reference.digest(array)


def test_an_array_of_64_bits_has_the_same_digest_on_host_and_device():
    array = table("float64") / 3

    with jax.enable_x64(True):
        on_device = digest(jnp.asarray(array))

    assert on_device == digest(array) == reference.digest(array)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_bit_of_every_element_counts(dtype):
    array = np.array([[0, 1, 2], [3, 4, 100]]).astype(jnp.dtype(dtype))
    seen = {digest(array)}

    for element in range(array.size):
        for bit in range(8 * array.itemsize):
            changed = array.copy()
            flat = bits(changed.reshape(-1))
            flat[element] ^= np.array(1 << bit, flat.dtype)
            seen.add(digest(changed))

    assert len(seen) == 1 + array.size * 8 * array.itemsize


def test_every_sign_of_a_large_table_counts_in_each_of_the_four_sums():
    array = np.ones(1024, np.float32)
    want = digest(array)

    for element in range(0, 1024, 8):
        changed = array.copy()
        changed[element] = -1
        got, old = (re.findall("." * 8, d.split()[-1]) for d in (digest(changed), want))
        assert all(a != b for a, b in zip(got, old, strict=True))


def test_a_zero_has_a_sign_and_a_nan_its_bits():
    nans = np.array([0x7FC00000, 0x7FC00001, 0xFFC00000, 0x7F800001], np.uint32)
    arrays = [np.array([x], np.float32) for x in (0.0, -0.0)]
    arrays += list(nans.view(np.float32).reshape(4, 1))

    assert len({digest(array) for array in arrays}) == 6


def test_no_two_elements_rows_or_columns_may_be_swapped():
    array = table()
    seen = {digest(array)}

    pairs = list(itertools.combinations(range(array.size), 2))[::16]
    for i, j in pairs:
        changed = array.copy()
        changed.reshape(-1)[[i, j]] = changed.reshape(-1)[[j, i]]
        seen.add(digest(changed))
    lines = list(itertools.combinations(range(8), 2))
    for i, j in lines:
        rows, columns = array.copy(), array.copy()
        rows[[i, j]] = rows[[j, i]]
        columns[:, [i, j]] = columns[:, [j, i]]
        seen |= {digest(rows), digest(columns)}

    assert len(seen) == 1 + len(pairs) + 2 * len(lines)


def test_type_and_shape_count_where_the_bits_are_the_same():
    array = np.arange(6, dtype=np.int32)
    same = [array, array.view(np.float32), array.view(np.uint32)]
    same += [array.reshape(shape) for shape in [(2, 3), (3, 2), (1, 6), (6, 1)]]
    same += [np.zeros(shape, np.int32) for shape in [(0,), (0, 1), (1, 0)]]

    assert len({digest(array) for array in same}) == len(same)


MESHES = [((8, 1), "float32"), ((1, 8), "float32"), ((2, 2), "float32")]
MESHES += [((4, 2), "float32"), ((4, 2), "bfloat16"), ((4, 2), "bool")]


@pytest.mark.parametrize(("shape", "dtype"), MESHES)
def test_it_depends_neither_on_devices_nor_on_the_sharding(shape, dtype):
    array = table(dtype)
    want = reference.digest(array)

    for spec in SPECS:
        sharded = jax.device_put(array, NamedSharding(grid(*shape), spec))
        assert digest(sharded) == want


def test_arrays_of_one_tree_may_have_different_shardings():
    rows = jax.device_put(table(), NamedSharding(grid(4, 2), P("data")))
    columns = jax.device_put(table(), NamedSharding(grid(2, 4), P(None, "model")))
    one = jax.device_put(table(), jax.devices()[3])

    *got, last = checkpoint.digests([rows, columns, one, table(), 7]).values()

    assert set(got) == {reference.digest(table())}
    assert last == reference.digest(7)
    assert checkpoint.digests({}) == {}


def test_two_processes_that_share_an_array_find_what_one_finds(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    cluster = {"SMF_COORDINATOR": f"127.0.0.1:{port}", "SMF_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", digest_process.__name__, tmp_path / number],
            cwd=Path(__file__).parents[2],
            env=os.environ | cluster | {"SMF_PROCESS_ID": number},
        )
        for number in "01"
    ]
    try:
        assert [process.wait(timeout=60) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()

    count = len(digest_process.SPECS) + 1
    for number in "01":
        lines = (tmp_path / number).read_text().splitlines()
        assert lines == [reference.digest(digest_process.TABLE)] * count


@pytest.mark.parametrize("spec", SPECS)
def test_devices_exchange_nothing_and_write_no_array(spec):
    mesh = grid(4, 2)
    array = jax.ShapeDtypeStruct(
        (1024, 512), jnp.float32, sharding=NamedSharding(mesh, spec)
    )

    program = sums_by_device.lower(array, mesh, spec).compile(AS_FOR_USERS)

    exchanges = "all-|collective|reduce-scatter|send|recv"
    assert not re.search(rf"\b({exchanges})[\w-]*\(", program.as_text())
    assert program.memory_analysis().temp_size_in_bytes < 4096  # of 2 MB


def test_hashes_differ_beyond_what_32_bits_can_number():
    # 2**20 rows of 2**13: every 2**19 rows the flat index would begin anew.
    rows, columns = np.meshgrid(
        [0, 1, 2, 2**19, 2**19 + 1, 2**20 - 1], np.arange(2**13), indexing="ij"
    )
    index = [jnp.asarray(axis, jnp.uint32) for axis in (rows, columns)]

    hashes = np.stack([np.asarray(hash_index(index, s)).reshape(-1) for s in SEEDS])

    assert len(np.unique(hashes, axis=1).T) == rows.size


def test_mixing_is_one_to_one():
    words = np.random.default_rng(0).integers(2**32, size=2**16, dtype=np.uint32)
    words = np.unique(words)

    mixed = np.asarray(mix(jnp.asarray(words)))

    assert len(np.unique(mixed)) == len(words)
    assert [reference.mix(int(word)) for word in words[:100]] == mixed[:100].tolist()


def test_one_bit_a_name_a_type_or_a_shape_changes_the_hash_of_parameters():
    def params():
        keys = jnp.array([[-0.0, 0.0, 1e-42]])
        return {"keys": keys, "scale": jnp.array([1.5, -2.0])}

    changed = [params() for _ in range(6)]
    changed[1]["keys"] = changed[1]["keys"].at[0, 0].set(0.0)  # was -0.0
    changed[2]["kees"] = changed[2].pop("keys")
    changed[3]["keys"] = changed[3]["keys"].view(jnp.int32)
    changed[4]["keys"] = changed[4]["keys"].reshape(3, 1)

    hashes = [checkpoint.params_hash(tree) for tree in changed]
    assert len(set(hashes)) == 5
    assert hashes[0] == hashes[5]
