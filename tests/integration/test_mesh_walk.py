"""Runs on a mesh of eight devices equal runs on one.

Steps on every mesh: tests/train/test_mesh.py. Several processes:
tests/faults/test_processes.py.
"""

import numpy as np
import pytest

from smf_jax.config import MeshConfig, OptimConfig
from smf_jax.runs.load import load_run
from smf_jax.slots import document_frequency, patch
from tests import bases, tiny
from tests.integration.files import read_json, rows

MESHES = {
    "columns": MeshConfig(data=2, fsdp=2, model=2),
    "slots": MeshConfig(data=4, model=2, values="slots"),
}
MUON = OptimConfig(method="full", optimizer="muon", learning_rate=0.001)


@pytest.fixture(scope="module")
def finetune(commands, base):
    """Returns a function that finetunes `base` on a mesh, with three rows a batch."""

    def run(title: str, mesh: MeshConfig, optim: OptimConfig = tiny.SMF):
        run_dir = commands.folder / title
        schedule = {"steps": 5, "batch_size": 3, "log_every": 1, "eval_every": 0}
        settings = schedule | {"mesh": mesh, "teach": "statements"}
        config = tiny.finetune_config(base, run_dir, optim, **settings)
        assert commands.run_config(title, config) == 0
        return run_dir

    return run


@pytest.fixture(scope="module")
def on_one_device(finetune):
    return finetune("one", tiny.ONE)


def losses(run_dir) -> list[float]:
    return [row["loss"] for row in rows(run_dir)]


@pytest.mark.parametrize("values", MESHES)
def test_smf_on_a_mesh_writes_the_same_rows_and_gives_the_same_answers(
    finetune, on_one_device, run, values
):
    run_dir = finetune(values, MESHES[values])

    assert losses(run_dir) == pytest.approx(losses(on_one_device), abs=1e-5)
    got, want = (patch.load(d / "patch.safetensors") for d in (run_dir, on_one_device))
    assert got.base_hash == want.base_hash
    (got_rows,), (want_rows,) = got.tables, want.tables
    assert got_rows.slots.tolist() == want_rows.slots.tolist()
    assert len(got_rows.slots) > tiny.SMF.top_t
    np.testing.assert_array_equal(got_rows.before, want_rows.before)
    np.testing.assert_allclose(got_rows.after, want_rows.after, rtol=0, atol=1e-5)
    answers = (read_json(d / "evaluation.json") for d in (run_dir, on_one_device))
    assert len({str(of["answers"]) for of in answers}) == 1
    assert run("verify", run_dir)[0] == 0


def test_muon_on_a_mesh_has_the_same_losses(finetune):
    one, eight = (
        finetune(f"muon {mesh.model}", mesh, MUON)
        for mesh in (tiny.ONE, MESHES["columns"])
    )

    # Muon's Adam divides by sums of squares that may be next to 0.
    assert losses(eight) == pytest.approx(losses(one), abs=1e-3)


def test_pretraining_and_usage_say_how_they_use_the_devices(run, tmp_path):
    run_dir = tmp_path / "run"
    mesh = ["--mesh.data", "0", "--mesh.fsdp", "2", "--mesh.model", "2"]
    mesh += ["--mesh.values", "slots", "--steps", "4"]

    code, printed = run(bases.base_config(run_dir), *mesh)

    assert code == 0
    assert "mesh: data=2 fsdp=2 model=2 values=slots\n" in printed
    assert "batches: 5 rows padded by 3" in printed
    usage = ["usage", run_dir, "--documents", "6"]
    code, printed = run(*usage, "--mesh.data", "1")
    assert code == 0
    assert "model=2 values=slots; 4 of 8 devices left out" in printed
    assert run(*usage)[0] == 0
    loaded = load_run(run_dir)
    assert loaded.model.layout.mesh.shape == {"data": 2, "fsdp": 2, "model": 2}
    path = run_dir / "usage.safetensors"
    background = document_frequency.load(path, loaded.model_hash, 1, 64)
    assert 0 < background.document_frequency.max() <= 6


def test_a_mesh_retrofits_a_model(plain, run, tmp_path):
    mesh = MeshConfig(data=1, fsdp=0, values="everywhere")
    # At a rate at which three steps make a memory that is not inert.
    optim = OptimConfig(method="memory", learning_rate=0.2)
    settings = {"steps": 3, "margin": 10.0, "mesh": mesh, "optim": optim}
    config = tiny.retrofit_config(plain, tmp_path / "run", **settings)

    assert run(config)[0] == 0

    assert load_run(config.run_dir).model.config.memory == config.memory


@pytest.mark.parametrize(
    ("data", "model", "why"),
    [(3, 3, "is 9 devices, but there are 8"), (1, 8, "value_dim=12 is not a mult")],
)
def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_written(
    run, tmp_path, data, model, why
):
    mesh = ["--mesh.data", data, "--mesh.model", model]

    code, printed = run(bases.base_config(tmp_path / "run"), *mesh)

    assert code == 2
    assert why in printed.replace("\n", " ")
    assert not (tmp_path / "run").exists()
