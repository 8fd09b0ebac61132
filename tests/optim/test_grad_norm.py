import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smf_jax.config import ComputeConfig, MeshConfig
from smf_jax.optim import grad_norm
from smf_jax.optim.grad_norm import clip, global_norm
from smf_jax.sharding import ONE_DEVICE, make_layout

GRADS = {
    "blocks": {"kernel": jnp.zeros((2, 3)).at[0, 1].set(3.0)},
    "values": {0: jnp.zeros((8, 2)).at[7, 1].set(-4.0)},
}


def test_the_norm_is_that_of_all_numbers_together():
    assert float(global_norm(GRADS)) == 5


def test_a_gradient_that_is_too_long_is_scaled():
    got = clip(GRADS, global_norm(GRADS), 1.0)

    assert float(got["blocks"]["kernel"][0, 1]) == pytest.approx(0.6)
    assert float(got["values"][0][7, 1]) == pytest.approx(-0.8)
    assert float(global_norm(got)) == pytest.approx(1)


@pytest.mark.parametrize("max_norm", [5.0, 9.0, None])
def test_a_gradient_that_is_not_too_long_stays_as_it_is(max_norm):
    got = clip(GRADS, global_norm(GRADS), max_norm)

    jax.tree.map(np.testing.assert_array_equal, got, GRADS)


@pytest.mark.parametrize(
    ("split", "rows"),  # of a device: less than a chunk, several, and a part of one
    [
        *(("one device", rows) for rows in (1, 24, 27)),
        *((split, 27) for split in ("columns", "slots", "everywhere")),
    ],
)
def test_squares_of_a_table_are_summed_wherever_its_rows_are(monkeypatch, rows, split):
    monkeypatch.setattr(grad_norm, "ROWS_PER_CHUNK", 8)
    layout = ONE_DEVICE
    if split != "one device":
        rows *= 8
        mesh = MeshConfig(data=2, fsdp=2, model=2, values=split)
        layout = make_layout(mesh, ComputeConfig(), None)
    table = np.random.default_rng(0).integers(-9, 9, (rows, 4)).astype(np.float32)
    sharded = layout.device_put(table, layout.sharding(layout.table_spec))

    got = jax.jit(lambda table: global_norm({"values": {0: table}}, layout))(sharded)

    assert float(got) == np.sqrt((table**2).sum())  # of whole numbers, so exactly
