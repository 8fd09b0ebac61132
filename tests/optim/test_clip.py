import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smf_jax.config import ComputeConfig, MeshConfig
from smf_jax.optim import clip as module
from smf_jax.optim.clip import clip, norm
from smf_jax.sharding import ONE_DEVICE, make_placement

GRADS = {
    "blocks": {"kernel": jnp.zeros((2, 3)).at[0, 1].set(3.0)},
    "values": {0: jnp.zeros((8, 2)).at[7, 1].set(-4.0)},
}


def test_the_norm_is_that_of_all_numbers_together():
    assert float(norm(GRADS)) == 5


def test_a_gradient_that_is_too_long_is_scaled():
    got = clip(GRADS, norm(GRADS), 1.0)

    assert float(got["blocks"]["kernel"][0, 1]) == pytest.approx(0.6)
    assert float(got["values"][0][7, 1]) == pytest.approx(-0.8)
    assert float(norm(got)) == pytest.approx(1)


@pytest.mark.parametrize("longest", [5.0, 9.0, None])
def test_a_gradient_that_is_not_too_long_stays_as_it_is(longest):
    got = clip(GRADS, norm(GRADS), longest)

    jax.tree.map(np.testing.assert_array_equal, got, GRADS)


@pytest.mark.parametrize("rows", [1, 8, 24, 27])
@pytest.mark.parametrize("values", ["one device", "columns", "slots", "everywhere"])
def test_squares_of_a_table_are_summed_wherever_its_rows_are(monkeypatch, rows, values):
    monkeypatch.setattr(module, "SQUARES_AT_ONCE", 8)
    placement = ONE_DEVICE
    if values != "one device":
        rows *= 8
        mesh = MeshConfig(data=2, fsdp=2, model=2, values=values)
        placement = make_placement(mesh, ComputeConfig(), None)
    table = np.random.default_rng(0).integers(-9, 9, (rows, 4)).astype(np.float32)
    placed = placement.put(table, placement.sharding(placement.table))

    got = jax.jit(lambda table: norm({"values": {0: table}}, placement))(placed)

    assert float(got) == np.sqrt((table**2).sum())  # of whole numbers, so exactly
