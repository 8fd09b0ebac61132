"""A configuration says what sums a memory's rows, and a mesh changes no sum."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smf_jax import cli
from smf_jax.config import ComputeConfig, ConfigError, MeshConfig
from smf_jax.kernels import rows_gpu, sharded
from smf_jax.runs.load import layout_of
from smf_jax.runs.record import Lineage
from smf_jax.sharding import MeshLayout, make_layout
from tests.integration.commands import CONFIG_FILE
from tests.tiny import pretrain_config

NUM_SLOTS, VALUE_DIM, BATCH, SEQ, READS = 8, 6, 4, 3, 5
PALLAS = ComputeConfig(lookup="pallas")
ONE = MeshConfig(data=1)


def read_and_teach(layout):
    """Returns the sums, and their gradients: the table's and the weights'."""
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(NUM_SLOTS, VALUE_DIM)), jnp.float32)
    tokens = (BATCH, SEQ, READS)
    slots = jnp.asarray(rng.integers(0, NUM_SLOTS, tokens), jnp.int32)
    weights = jnp.asarray(rng.normal(size=tokens), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(BATCH, SEQ, VALUE_DIM)), jnp.float32)

    @jax.jit
    def run(values, weights):
        def read(values, weights):
            return sharded.weighted_rows(layout, values, slots, weights)

        sums, gradients = jax.vjp(read, values, weights)
        return sums, *gradients(cotangent)

    return run(values, weights)


@pytest.mark.parametrize(
    "mesh",
    [
        ONE,
        MeshConfig(data=2, model=2, values="columns"),
        MeshConfig(data=2, model=2, values="slots"),
        MeshConfig(data=1, fsdp=2, model=2, values="everywhere"),
    ],
    ids=lambda mesh: f"{mesh.values} of {max(mesh.data, mesh.fsdp) * mesh.model}",
)
def test_kernels_on_a_mesh_do_what_xla_does_on_one_device(monkeypatch, mesh):
    want = read_and_teach(make_layout(ONE, ComputeConfig(), None))
    placed = make_layout(mesh, ComputeConfig(), None)
    layout = MeshLayout(placed.mesh, placed.layout, PALLAS)
    interpreted = {
        name: functools.partial(getattr(rows_gpu, name), interpret=True)
        for name in ("weighted_rows", "weight_gradient", "table_gradient")
    }
    monkeypatch.setattr(sharded, "kernels", lambda _: SimpleNamespace(**interpreted))

    got = read_and_teach(layout)

    for one, other in zip(want, got, strict=True):
        # float32 sums of up to 60 products of size 1, in another order
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mesh", [ONE, MeshConfig(data=2)], ids=["one", "two"])
def test_there_are_no_kernels_for_a_cpu(mesh):
    with pytest.raises(ConfigError, match=r"compute\.lookup=pallas .* are cpu"):
        make_layout(mesh, PALLAS, None)


def test_a_run_that_asks_for_kernels_on_a_cpu_ends_with_code_2(tmp_path, capsys):
    path = tmp_path / "base.py"
    config = pretrain_config(tmp_path / "run", steps=9)
    path.write_text(CONFIG_FILE.format(config=config))

    code = cli.main(["pretrain", str(path), "--compute.lookup", "pallas"])

    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "compute.lookup=pallas is for GPU and TPU" in line
    assert not (tmp_path / "run").exists()


def test_a_model_that_was_trained_by_kernels_is_read_without_them_on_a_cpu():
    config = dataclasses.replace(pretrain_config("run", steps=9), compute=PALLAS)

    layout = layout_of(Lineage(pretrain=config))

    assert layout.compute.lookup == "xla"
