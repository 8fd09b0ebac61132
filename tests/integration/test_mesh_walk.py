"""Runs on a mesh of eight devices equal runs on one device.

Steps on every mesh: tests/train/test_mesh.py. Several processes:
tests/faults/test_processes.py.
"""

import json

import numpy as np
import pytest

from smf_jax.config import FinetuneConfig, MeshConfig, OptimConfig, RetrofitConfig
from smf_jax.runs.load import load_run
from smf_jax.slots import document_frequency, patch
from tests import bases, tiny

STEPS, TOP_T = 5, 4
MESHES = {
    "columns": MeshConfig(data=2, fsdp=2, model=2),
    "slots": MeshConfig(data=4, model=2, values="slots"),
}
SMF = OptimConfig(method="smf", optimizer="sgd", learning_rate=5.0, top_t=TOP_T)
MUON = OptimConfig(method="full", optimizer="muon", learning_rate=0.001)


@pytest.fixture(scope="module")
def finetune(commands, base):
    """Returns a function that finetunes `base` on a mesh."""

    def run(title: str, mesh: MeshConfig, optim: OptimConfig):
        config = FinetuneConfig(
            base=str(base),
            run_dir=str(commands.folder / title),
            teach="statements",
            steps=STEPS,
            batch_size=3,
            log_every=1,
            eval_every=0,
            mesh=mesh,
            optim=optim,
        )
        assert commands.run_config(title, config) == 0
        return commands.folder / title

    return run


@pytest.fixture(scope="module")
def on_one_device(finetune):
    return finetune("one", tiny.ONE, SMF)


def losses(run_dir) -> list[float]:
    rows = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["loss"] for row in rows]


def answers(run_dir) -> dict:
    return json.loads((run_dir / "evaluation.json").read_text())["answers"]


@pytest.mark.parametrize("values", MESHES)
def test_smf_on_a_mesh_writes_the_same_rows_and_gives_the_same_answers(
    finetune, on_one_device, run, values
):
    run_dir = finetune(values, MESHES[values], SMF)

    assert losses(run_dir) == pytest.approx(losses(on_one_device), abs=1e-5)
    got, want = (patch.load(d / "patch.safetensors") for d in (run_dir, on_one_device))
    assert got.base_hash == want.base_hash
    (rows,), (want_rows,) = got.tables, want.tables
    assert rows.slots.tolist() == want_rows.slots.tolist()
    assert len(rows.slots) > TOP_T
    np.testing.assert_array_equal(rows.before, want_rows.before)
    np.testing.assert_allclose(rows.after, want_rows.after, rtol=0, atol=1e-5)
    assert answers(run_dir) == answers(on_one_device)
    assert run("verify", run_dir)[0] == 0


def test_muon_on_a_mesh_has_the_same_losses(finetune):
    one, eight = (
        finetune(f"muon {mesh.model}", mesh, MUON)
        for mesh in (tiny.ONE, MESHES["columns"])
    )

    # Muon's Adam divides by sums of squares that may be next to 0.
    assert losses(eight) == pytest.approx(losses(one), abs=1e-3)


def test_pretraining_and_usage_say_how_they_use_the_devices(commands, run):
    run_dir = commands.folder / "pretrained"
    config = commands.write("pretrained", bases.base_config(run_dir))
    mesh = ["--mesh.data", "0", "--mesh.fsdp", "2", "--mesh.model", "2"]

    code, printed = run(
        *("pretrain", config, *mesh, "--mesh.values", "slots", "--steps", "4")
    )

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
    frequency, _ = document_frequency.load(path, loaded.model_hash, 1, 64)
    assert 0 < frequency.max() <= 6


def test_a_mesh_retrofits_a_model(commands, plain):
    config = bases.base_config("unused")
    memory = tiny.memory_config(num_keys=8, value_dim=12, placement="add")
    retrofit = RetrofitConfig(
        base=str(plain),
        run_dir=str(commands.folder / "retrofitted"),
        steps=3,
        margin=10.0,
        log_every=1,
        mesh=MeshConfig(data=1, fsdp=0, values="everywhere"),
        memory=memory,
        data=config.data,
    )

    assert commands.run_config("retrofitted", retrofit) == 0

    assert load_run(retrofit.run_dir).model.config.memory == memory


@pytest.mark.parametrize(
    ("data", "model", "why"),
    [(3, 3, "is 9 devices, but there are 8"), (1, 8, "value_dim=12 is not a mult")],
)
def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_written(
    commands, run, tmp_path, data, model, why
):
    config = commands.write("refused", bases.base_config(tmp_path / "run"))

    code, printed = run("pretrain", config, "--mesh.data", data, "--mesh.model", model)

    assert code == 2
    assert why in printed.replace("\n", " ")
    assert not (tmp_path / "run").exists()
