"""All ways to sum rows, those for GPU and TPU interpreted, do what plain numpy does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from smf_jax.kernels import rows, rows_gpu, rows_tpu
from tests.reference import rows as reference

# Of widths, one less than a tile, one a tile, one of several and a part; 40 reads of
# 130 numbers are several tiles of a GPU. A token reads more slots than there are where
# it reads 9 of 7, so that some repeat.
SHAPES = {
    "few": {"num_slots": 7, "value_dim": 5, "batch": (2, 3), "reads": 9},
    "one token": {"num_slots": 9, "value_dim": 128, "batch": (1,), "reads": 1},
    "odd": {"num_slots": 50, "value_dim": 130, "batch": (19,), "reads": 40},
}
KERNELS = {"xla": rows, "gpu": rows_gpu, "tpu": rows_tpu}
DTYPES = {"float32": 1e-4, "bfloat16": 1e-4}  # sums of up to 760 products of size 1
by_way = pytest.mark.parametrize("way", KERNELS)
by_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
by_shape = pytest.mark.parametrize("shape", SHAPES)


def call(way: str, name: str, dtype: str, *arguments):
    """Calls a function of one of the ways, compiled as it is in a step."""
    function = getattr(KERNELS[way], name)
    if way != "xla":
        # The simulation of copies that are under way knows no words of two numbers.
        simulated = way == "tpu" and dtype == "float32"
        interpret = pltpu.InterpretParams() if simulated else True
        function = functools.partial(function, interpret=interpret)
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
    # float32 sums of up to hundreds of products of size 1, rounded to bfloat16 at last
    rtol = 2**-8 if dtype == "bfloat16" else 0
    np.testing.assert_allclose(
        np.asarray(got, np.float64), want, rtol=rtol, atol=1e-4
    )


@by_shape
@by_dtype
@by_way
def test_a_token_gets_the_weighted_sum_of_its_rows(way, dtype, shape):
    values, slots, weights, _ = make_reads(dtype, **SHAPES[shape])

    got = call(way, "weighted_rows", dtype, values, slots, weights)

    assert got.dtype == values.dtype
    is_near(got, reference.weighted_rows(values, slots, weights), dtype)


@by_shape
@by_dtype
@by_way
def test_a_weight_gets_the_gradient_of_its_row(way, dtype, shape):
    values, slots, _, cotangent = make_reads(dtype, **SHAPES[shape])

    got = call(way, "weight_gradient", dtype, values, slots, cotangent)

    assert got.dtype == jnp.float32
    is_near(got, reference.weights_gradient(cotangent, slots, values))


@by_shape
@by_dtype
@by_way
def test_a_row_gets_the_gradient_of_every_token_that_read_it(way, dtype, shape):
    _, slots, weights, cotangent = make_reads(dtype, **SHAPES[shape])
    num_slots = SHAPES[shape]["num_slots"]

    got = call(way, "table_gradient", dtype, cotangent, slots, weights, num_slots)

    assert got.dtype == jnp.float32
    is_near(got, reference.values_gradient(cotangent, slots, weights, num_slots))
