"""Kernels for row sums equal loops in float64, whatever the platform.

Triton kernels are interpreted on a CPU; on a GPU they are compiled
(`SMF_TEST_PLATFORM=cuda pytest tests/kernels/test_row_sums.py`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smf_jax.kernels import row_sums_gpu, row_sums_xla
from smf_jax.kernels.row_sums import weighted_rows
from tests.reference import row_sums as reference

# Widths: less than a tile, one, one and a part. Tokens that read 9 of 7 slots read some
# of them twice. With the sizes below, the last shape is in several tiles everywhere.
SHAPES = {
    "few": {"num_slots": 7, "value_dim": 5, "batch": (2, 3), "reads": 9},
    "one token": {"num_slots": 9, "value_dim": 128, "batch": (1,), "reads": 1},
    "chunks": {"num_slots": 50, "value_dim": 130, "batch": (19,), "reads": 40},
}


class Kernels:
    """The functions of a module on one platform."""

    def __init__(self, module, platform):
        for name in ("weighted_rows", "weight_gradient", "table_gradient"):
            function = functools.partial(getattr(module, name), platform=platform)
            setattr(self, name, function)


KERNELS = {name: Kernels(row_sums_xla, name) for name in ("cpu", "gpu", "tpu")}
KERNELS["triton"] = Kernels(row_sums_gpu, jax.default_backend())
every_kernel = pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS.keys())


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(row_sums_gpu, "SUM_TILE", (16, 64))
    monkeypatch.setattr(row_sums_gpu, "MULTIPLY_TILE", (16, 64))
    monkeypatch.setattr(row_sums_gpu, "COLUMNS", 64)
    monkeypatch.setattr(row_sums_gpu, "MIN_RUN", 8)


def table_gradient(kernels, cotangent, slots, weights, num_slots):
    function = jax.jit(kernels.table_gradient, static_argnums=3)
    return function(cotangent, slots, weights, num_slots)


def make_reads(dtype, num_slots, value_dim, batch, reads):
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(num_slots, value_dim)), dtype)
    slots = jnp.asarray(rng.integers(0, num_slots, (*batch, reads)), jnp.int32)
    weights = jnp.asarray(rng.normal(size=(*batch, reads)), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(*batch, value_dim)), dtype)
    return values, slots, weights, cotangent


def assert_near(got, want, dtype="float32"):
    # float32 sums of up to 130 products of size 1, at the end rounded to bfloat16
    rtol = 2**-8 if dtype == "bfloat16" else 0
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=rtol, atol=5e-5)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [*(("float32", shape) for shape in SHAPES), ("bfloat16", "few")],
)
@every_kernel
def test_sums_and_their_gradients_are_those_of_loops(kernels, dtype, shape):
    values, slots, weights, cotangent = make_reads(dtype, **SHAPES[shape])

    @jax.jit
    def run(values, slots, weights, cotangent):
        return (
            kernels.weighted_rows(values, slots, weights),
            kernels.weight_gradient(values, slots, cotangent),
            kernels.table_gradient(cotangent, slots, weights, len(values)),
        )

    sums, of_weights, of_table = run(values, slots, weights, cotangent)

    assert (sums.dtype, of_weights.dtype, of_table.dtype) == (dtype, "f4", "f4")
    assert_near(sums, reference.weighted_rows(values, slots, weights), dtype)
    assert_near(of_weights, reference.weights_gradient(cotangent, slots, values))
    want = reference.values_gradient(cotangent, slots, weights, len(values))
    assert_near(of_table, want)


@every_kernel
def test_rows_that_many_tokens_read_get_the_gradient_of_all(kernels):
    # Slots of 0, 1, 31, 33, 40 and 500 reads and some past the table, in any order.
    slots = np.repeat(np.array([1, 4, 2, 5, 3, 7, 900]), [1, 31, 33, 40, 500, 16, 19])
    rng = np.random.default_rng(0)
    slots = jnp.asarray(rng.permutation(slots).reshape(32, 20), jnp.int32)
    weights = jnp.asarray(rng.normal(size=slots.shape), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(32, 70)), jnp.float32)

    got = table_gradient(kernels, cotangent, slots, weights, 8)

    known = jnp.minimum(slots, 8)
    want = reference.values_gradient(cotangent, known, weights, 9)[:8]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)  # float32 sums of 500


@every_kernel
def test_bfloat16_rows_are_summed_in_float32(kernels):
    # Added one by one in bfloat16, ones stop growing at 256, and 301 is 302.
    values, cotangent = jnp.ones((3, 301), "bfloat16"), jnp.ones((2, 301), "bfloat16")
    slots, weights = jnp.ones((2, 300), jnp.int32), jnp.ones((2, 300))

    sums = jax.jit(kernels.weighted_rows)(values, slots * 2, weights)
    of_weights = jax.jit(kernels.weight_gradient)(values, slots, cotangent)
    of_table = table_gradient(kernels, cotangent, slots, weights, 3)

    assert (np.asarray(sums) == 300).all()
    assert (np.asarray(of_weights) == 301).all()
    assert (np.asarray(of_table) == [[0], [600], [0]]).all()


def test_triton_does_not_read_rows_of_weight_zero():
    values, slots, weights, _ = make_reads("float32", **SHAPES["few"])
    weights = jnp.zeros_like(weights).at[0, 0, 0].set(weights[0, 0, 0])
    want = weights[0, 0, 0] * values[slots[0, 0, 0]]
    others = jnp.arange(7) != slots[0, 0, 0]
    values = jnp.where(others[:, None], jnp.nan, values)

    sums = KERNELS["triton"].weighted_rows(values, slots, weights)

    np.testing.assert_allclose(sums[0, 0], want, rtol=1e-6)
    assert not np.asarray(sums).reshape(6, 5)[1:].any()


@every_kernel
def test_a_slot_past_the_table_has_no_gradient(kernels):
    slots = jnp.array([[3, 0], [4, 2**31 - 1]], jnp.int32)
    cotangent = jnp.array([[1.0, 2.0], [10.0, 20.0]])

    got = table_gradient(kernels, cotangent, slots, jnp.ones((2, 2)), 3)

    assert got.tolist() == [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weighted_rows_are_differentiable_without_a_layout(dtype):
    values, slots, weights, cotangent = make_reads(dtype, **SHAPES["few"])

    def total(values, weights):
        return (weighted_rows(values, slots, weights) * cotangent).sum()

    of_values, of_weights = jax.jit(jax.grad(total, argnums=(0, 1)))(values, weights)

    assert (of_values.dtype, of_weights.dtype) == (dtype, "float32")
    assert_near(of_weights, reference.weights_gradient(cotangent, slots, values))
    want = reference.values_gradient(cotangent, slots, weights, len(values))
    assert_near(of_values, want, dtype)
