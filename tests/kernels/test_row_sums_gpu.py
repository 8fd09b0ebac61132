"""Row sums by XLA and by the GPU kernels equal plain numpy.

The GPU kernels are interpreted on a CPU; on a GPU they are compiled
(`SMF_TEST_PLATFORM=cuda pytest tests/kernels/test_row_sums_gpu.py`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smf_jax.kernels import row_sums_gpu
from smf_jax.kernels.sharded import kernels
from smf_jax.sharding import ONE_DEVICE
from tests.reference import row_sums as reference

# Widths: less than a tile, one, one and a part. Tokens that read 9 of 7 slots read some
# of them twice. With the sizes below, the last shape is in several blocks everywhere.
SHAPES = {
    "few": {"num_slots": 7, "value_dim": 5, "batch": (2, 3), "reads": 9},
    "one token": {"num_slots": 9, "value_dim": 128, "batch": (1,), "reads": 1},
    "blocks": {"num_slots": 50, "value_dim": 130, "batch": (11,), "reads": 40},
}
KERNELS = {"xla": kernels(ONE_DEVICE), "gpu": row_sums_gpu}
by_way = pytest.mark.parametrize("way", KERNELS)
by_table = pytest.mark.parametrize(
    ("dtype", "shape"),
    [*(("float32", shape) for shape in SHAPES), ("bfloat16", "few")],
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for name in ("SUMMED", "MULTIPLIED"):
        monkeypatch.setattr(row_sums_gpu, name, (16, 64))
    monkeypatch.setattr(row_sums_gpu, "COLUMNS", 64)
    monkeypatch.setattr(row_sums_gpu, "RUN", 8)


def call(way: str, name: str, *arguments):
    """Calls a function of one of the ways, compiled as it is in a step."""
    function = getattr(KERNELS[way], name)
    if way not in ("xla", jax.default_backend()):
        function = functools.partial(function, interpret=True)
    if name == "table_gradient":
        return jax.jit(function, static_argnums=3)(*arguments)
    return jax.jit(function)(*arguments)


def make_reads(dtype, num_slots, value_dim, batch, reads):
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(num_slots, value_dim)), dtype)
    slots = jnp.asarray(rng.integers(0, num_slots, (*batch, reads)), jnp.int32)
    weights = jnp.asarray(rng.normal(size=(*batch, reads)), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(*batch, value_dim)), dtype)
    return values, slots, weights, cotangent


def is_near(got, want, dtype="float32"):
    # float32 sums of up to 130 products of size 1, rounded to bfloat16 at last
    rtol = 2**-8 if dtype == "bfloat16" else 0
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=rtol, atol=5e-5)


@by_table
@by_way
def test_a_token_gets_the_weighted_sum_of_its_rows(way, dtype, shape):
    values, slots, weights, _ = make_reads(dtype, **SHAPES[shape])

    got = call(way, "weighted_rows", values, slots, weights)

    assert got.dtype == values.dtype
    is_near(got, reference.weighted_rows(values, slots, weights), dtype)


@by_table
@by_way
def test_a_weight_gets_the_gradient_of_its_row(way, dtype, shape):
    values, slots, _, cotangent = make_reads(dtype, **SHAPES[shape])

    got = call(way, "weight_gradient", values, slots, cotangent)

    assert got.dtype == jnp.float32
    is_near(got, reference.weights_gradient(cotangent, slots, values))


@by_table
@by_way
def test_a_row_gets_the_gradient_of_every_token_that_read_it(way, dtype, shape):
    _, slots, weights, cotangent = make_reads(dtype, **SHAPES[shape])
    num_slots = SHAPES[shape]["num_slots"]

    got = call(way, "table_gradient", cotangent, slots, weights, num_slots)

    assert got.dtype == jnp.float32
    is_near(got, reference.values_gradient(cotangent, slots, weights, num_slots))


# --- what is read in other ways than at random ---


@by_way
def test_rows_that_many_tokens_read_get_the_gradient_of_all(way):
    # Slots of 0, 1, 31, 33, 40 and 500 reads and some past the table, in any order.
    slots = np.repeat(np.array([1, 4, 2, 5, 3, 7, 900]), [1, 31, 33, 40, 500, 16, 19])
    rng = np.random.default_rng(0)
    slots = jnp.asarray(rng.permutation(slots).reshape(32, 20), jnp.int32)
    weights = jnp.asarray(rng.normal(size=slots.shape), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(32, 70)), jnp.float32)

    got = call(way, "table_gradient", cotangent, slots, weights, 8)

    known = jnp.minimum(slots, 8)
    want = reference.values_gradient(cotangent, known, weights, 9)[:8]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)  # float32 sums of 500


@by_way
def test_rows_that_all_tokens_read_are_summed_in_float32(way):
    # Added one by one in bfloat16, ones stop growing at 256.
    values = jnp.ones((3, 4), jnp.bfloat16)
    slots, weights = jnp.ones((10, 30), jnp.int32), jnp.ones((10, 30))
    cotangent = jnp.ones((10, 4), jnp.bfloat16)

    read = call(way, "weighted_rows", values, slots * 2, weights)
    args = (cotangent, slots, weights, 3)
    gradient = call(way, "table_gradient", *args)

    assert read.tolist() == [[30.0] * 4] * 10
    assert gradient.tolist() == [[0.0] * 4, [300.0] * 4, [0.0] * 4]


@by_way
def test_weights_of_zero_read_and_teach_nothing(way):
    values, slots, weights, cotangent = make_reads("float32", **SHAPES["few"])
    weights = jnp.zeros_like(weights).at[0, 0, 0].set(weights[0, 0, 0])
    want = weights[0, 0, 0] * values[slots[0, 0, 0]]

    if way == "gpu":  # which does not read them, so that nothing in them shows
        others = jnp.arange(7) != slots[0, 0, 0]
        values = jnp.where(others[:, None], jnp.nan, values)

    read = call(way, "weighted_rows", values, slots, weights)
    args = (cotangent[1], slots[1], weights[1], 7)
    gradient = call(way, "table_gradient", *args)

    np.testing.assert_allclose(read[0, 0], want, rtol=1e-6)
    assert not np.asarray(read).reshape(6, 5)[1:].any()
    assert not np.asarray(gradient).any()


@by_way
def test_a_slot_past_the_table_has_no_gradient(way):
    slots = jnp.array([[3, 0], [4, 2**31 - 1]], jnp.int32)
    cotangent = jnp.array([[1.0, 2.0], [10.0, 20.0]])

    args = (cotangent, slots, jnp.ones((2, 2)), 3)
    got = call(way, "table_gradient", *args)

    assert got.tolist() == [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]]
