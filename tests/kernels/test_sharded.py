"""A mesh changes neither sums of rows nor rows that are selected, read or written."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smf_jax.config import ComputeConfig, ConfigError, MeshConfig
from smf_jax.kernels import row_sums
from smf_jax.kernels.table_rows import put_rows, selected_rows_gradient, take_rows
from smf_jax.runs.layout import layout_of
from smf_jax.runs.record import Lineage
from smf_jax.sharding import ONE_DEVICE, MeshLayout, make_layout
from tests.kernels.test_row_sums import KERNELS, table_gradient
from tests.reference import row_sums as reference
from tests.tiny import pretrain_config

NUM_SLOTS, VALUE_DIM, BATCH, SEQ, READS = 8, 6, 4, 3, 5
PALLAS = ComputeConfig(lookup="pallas")
LAYOUTS = {
    "one device": ONE_DEVICE,
    **{
        split: make_layout(
            MeshConfig(data=1, fsdp=2, model=2, values=split), ComputeConfig(), None
        )
        for split in ("columns", "slots", "everywhere")
    },
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def make_reads(batch=(BATCH, SEQ)):
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(NUM_SLOTS, VALUE_DIM)), jnp.float32)
    slots = jnp.asarray(rng.integers(0, NUM_SLOTS, (*batch, READS)), jnp.int32)
    weights = jnp.asarray(rng.normal(size=(*batch, READS)), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(*batch, VALUE_DIM)), jnp.float32)
    return values, slots, weights, cotangent


@every_layout
@pytest.mark.parametrize("lookup", ["xla", "pallas"])
def test_sums_of_rows_and_their_gradients_are_those_of_loops(layout, lookup):
    values, slots, weights, cotangent = make_reads()
    layout = MeshLayout(layout.mesh, layout.table_split, ComputeConfig(lookup=lookup))

    @jax.jit
    def run(values, weights):
        def read(values, weights):
            return row_sums.weighted_rows(values, slots, weights, layout)

        sums, gradients = jax.vjp(read, values, weights)
        return sums, *gradients(cotangent)

    sums, of_values, of_weights = run(values, weights)

    tolerance = {"rtol": 0, "atol": 1e-5}  # float32 sums of up to 60 products of size 1
    want = reference.weighted_rows(values, slots, weights)
    np.testing.assert_allclose(sums, want, **tolerance)
    want = reference.values_gradient(cotangent, slots, weights, NUM_SLOTS)
    np.testing.assert_allclose(of_values, want, **tolerance)
    want = reference.weights_gradient(cotangent, slots, values)
    np.testing.assert_allclose(of_weights, want, **tolerance)


# 2060 tokens are more than one chunk of the product that sums the selected rows.
@every_layout
@pytest.mark.parametrize("batch", [(BATCH, SEQ), (4, 515)], ids=str)
def test_the_gradient_of_selected_rows_is_those_rows_of_the_dense_one(layout, batch):
    _, slots, weights, cotangent = make_reads(batch)
    selected = jnp.array([5, NUM_SLOTS, 0, NUM_SLOTS + 1])
    dense = table_gradient(KERNELS["cpu"], cotangent, slots, weights, NUM_SLOTS)
    want = dense.at[selected].get(mode="fill", fill_value=0)

    got = jax.jit(selected_rows_gradient, static_argnums=(0, 5))(
        layout, cotangent, slots, weights, selected, NUM_SLOTS
    )

    # float32 sums of up to 1300 products of size 1, in another order
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-4)


def test_the_selected_rows_of_a_bfloat16_cotangent_are_summed_in_float32():
    slots, weights = jnp.ones((600, 1), int), jnp.ones((600, 1))
    cotangent = jnp.ones((600, 3), jnp.bfloat16)

    got = selected_rows_gradient(
        ONE_DEVICE, cotangent, slots, weights, jnp.array([1]), 2
    )

    assert got.dtype == jnp.float32
    assert got.tolist() == [[600.0, 600.0, 600.0]]


@every_layout
def test_selected_rows_are_read_and_written_and_no_others(layout):
    table, *_ = make_reads()
    slots = jnp.array([6, NUM_SLOTS + 3, 0, NUM_SLOTS])

    @jax.jit
    def negate(table):
        rows = take_rows(layout, table, slots)
        return rows, put_rows(layout, table, slots, -rows)

    rows, got = negate(table)

    zeros = jnp.zeros(VALUE_DIM)
    np.testing.assert_array_equal(rows, jnp.stack([table[6], zeros, table[0], zeros]))
    np.testing.assert_array_equal(got, table.at[jnp.array([0, 6])].multiply(-1))


@pytest.mark.parametrize("data", [1, 2])
def test_there_are_no_kernels_for_a_cpu(data):
    with pytest.raises(ConfigError, match=r"compute\.lookup=pallas is for GPU.* cpu"):
        make_layout(MeshConfig(data=data), PALLAS, None)


def test_a_model_that_was_trained_by_kernels_is_loaded_without_them_on_a_cpu():
    config = dataclasses.replace(pretrain_config("run", steps=9), compute=PALLAS)

    layout = layout_of(Lineage(pretrain=config))

    assert layout.compute.lookup == "xla"
