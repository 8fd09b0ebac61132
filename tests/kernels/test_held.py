"""Rows that were read, and their gradient, against the gradient of the whole table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smf_jax.config import ComputeConfig, MeshConfig
from smf_jax.kernels import held, rows
from smf_jax.kernels.held import read_rows_gradient
from smf_jax.sharding import ONE_DEVICE, make_placement
from tests.reference import rows as reference

PLATFORM = jax.default_backend()
NUM_SLOTS, WIDTH, BATCH, SEQ, READS = 24, 4, 4, 3, 2
MESHES = {
    "columns": MeshConfig(data=2, fsdp=2, model=2, values="columns"),
    "slots": MeshConfig(data=2, fsdp=2, model=2, values="slots"),
    "everywhere": MeshConfig(data=2, fsdp=2, model=2, values="everywhere"),
}


def drawn(seed: int, below: int = NUM_SLOTS, layers: tuple[int, ...] = ()):
    """Returns a cotangent, slots of which some stand for none, and weights."""
    rng = np.random.default_rng(seed)
    tokens = (*layers, BATCH, SEQ)
    slots = rng.integers(0, below, (*tokens, READS), np.int32)
    slots[..., 0, 0, :] = NUM_SLOTS  # as reads of padding do
    weights = rng.normal(size=slots.shape).astype(np.float32)
    cotangent = rng.normal(size=(*tokens, WIDTH)).astype(np.float32)
    return tuple(map(jnp.asarray, (cotangent, slots, weights)))


def as_table(read, shards: int = 1) -> np.ndarray:
    """Returns the gradient as that of a whole table, of rows on so many devices."""
    of_one = NUM_SLOTS // shards
    table = np.zeros((NUM_SLOTS, WIDTH), np.float32)
    for shard, (places, gradient) in enumerate(
        zip(*(np.split(np.asarray(leaf), shards) for leaf in read), strict=True)
    ):
        assert (np.diff(places) > 0).all()
        here = places < of_one
        assert (gradient[~here] == 0).all()
        table[shard * of_one + places[here]] = gradient[here]
    return table


@given(
    st.integers(0, 9), st.integers(1, NUM_SLOTS), st.sampled_from([(), (2,), (2, 3)])
)
def test_it_is_the_gradient_of_the_whole_table_bit_for_bit(seed, below, layers):
    given = drawn(seed, below, layers)

    read = jax.jit(read_rows_gradient, static_argnums=(0, 4))(
        ONE_DEVICE, *given, NUM_SLOTS
    )

    want = jax.jit(rows.table_gradient, static_argnums=(3, 4))(
        *given, NUM_SLOTS, PLATFORM
    )
    np.testing.assert_array_equal(as_table(read), want)
    there = read.places[read.places < NUM_SLOTS]
    assert there.tolist() == sorted(set(np.unique(given[1])) - {NUM_SLOTS})


def test_it_is_the_gradient_in_plain_numpy():
    cotangent, slots, weights = drawn(0)

    read = read_rows_gradient(ONE_DEVICE, cotangent, slots, weights, NUM_SLOTS)

    is_read = slots < NUM_SLOTS
    want = reference.values_gradient(
        cotangent, jnp.where(is_read, slots, 0), weights * is_read, NUM_SLOTS
    )
    # float32 sums of a few products of size 1
    np.testing.assert_allclose(as_table(read), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", MESHES)
@pytest.mark.parametrize("layers", [(), (2,)], ids=str)
def test_each_device_has_the_rows_that_it_holds(layout, layers):
    given = drawn(1, layers=layers)
    placement = make_placement(MESHES[layout], ComputeConfig(), None)

    read = jax.jit(read_rows_gradient, static_argnums=(0, 4))(
        placement, *given, NUM_SLOTS
    )

    want = rows.table_gradient(*given, NUM_SLOTS, PLATFORM)
    shards = placement.ways(*placement.row_axes)
    # float32 sums, in the order of the devices
    np.testing.assert_allclose(as_table(read, shards), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("num_slots", "at_once", "room"),
    [(50, 1, 24), (50, 5, 25), (50, 24, 24), (50, 99, 24), (7, 5, 10), (7, 99, 7)],
)
def test_there_is_room_for_each_read_or_row_in_whole_blocks(
    monkeypatch, num_slots, at_once, room
):
    monkeypatch.setitem(held.ROWS_AT_ONCE, "cpu", at_once)

    read = read_rows_gradient(ONE_DEVICE, *drawn(0, below=7), num_slots)

    assert len(read.places) == len(read.gradient) == room
