"""A run that is made on one device, and taught, asked and read on eight, or back."""

import json

import numpy as np
import pytest

from smf_jax.config import FinetuneConfig, MeshConfig, OptimConfig, RetrofitConfig
from smf_jax.runs.load import load_run
from smf_jax.slots import document_frequency, patch
from tests import tiny
from tests.integration.commands import Commands

STEPS, TOP_T = 5, 4
EIGHT = {
    "columns": MeshConfig(data=2, fsdp=2, model=2),
    "slots": MeshConfig(data=4, model=2, values="slots"),
    "everywhere": MeshConfig(data=1, fsdp=0, values="everywhere"),
}


def taught_config(base, run_dir, mesh, **optim) -> FinetuneConfig:
    smf = {"method": "smf", "optimizer": "sgd", "learning_rate": 5.0, "top_t": TOP_T}
    return FinetuneConfig(
        base=str(base),
        run_dir=str(run_dir),
        teach="statements",
        steps=STEPS,
        batch_size=3,
        log_every=1,
        eval_every=0,
        mesh=mesh,
        optim=OptimConfig(**smf | optim),
    )


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(tmp_path_factory.mktemp("meshes"))


@pytest.fixture(scope="module")
def base(commands):
    run_dir = commands.folder / "base"
    config = tiny.pretrain_config(run_dir, 60)
    assert commands.run_config("base", "pretrain", config) == 0
    assert commands.run("usage", "usage", str(run_dir), "--documents", "6") == 0
    return run_dir


@pytest.fixture(scope="module")
def alone(commands, base):
    """Returns what one device was taught."""
    run_dir = commands.folder / "alone"
    config = taught_config(base, run_dir, tiny.ONE)
    assert commands.run_config("alone", "finetune", config) == 0
    return run_dir


def losses(run_dir) -> list[float]:
    rows = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["loss"] for row in rows]


def answers(run_dir) -> dict:
    return json.loads((run_dir / "evaluation.json").read_text())["answers"]


@pytest.mark.parametrize("layout", EIGHT)
def test_eight_devices_teach_the_same_rows_and_answer_the_same(
    commands, base, alone, layout
):
    run_dir = commands.folder / layout
    config = taught_config(base, run_dir, EIGHT[layout])

    assert commands.run_config(layout, "finetune", config) == 0

    assert losses(run_dir) == pytest.approx(losses(alone), abs=1e-5)
    got, want = (patch.load(run / "patch.safetensors") for run in (run_dir, alone))
    assert got.base_hash == want.base_hash
    (rows,), (want_rows,) = got.tables, want.tables
    assert rows.slots.tolist() == want_rows.slots.tolist()
    assert len(rows.slots) > TOP_T
    np.testing.assert_array_equal(rows.before, want_rows.before)
    np.testing.assert_allclose(rows.after, want_rows.after, rtol=0, atol=1e-5)
    assert answers(run_dir) == answers(alone)
    # Read again, it is what was saved.
    assert commands.run("verify", "verify", str(run_dir)) == 0


def test_eight_devices_pretrain_and_count_as_one_does(commands, base, capsys):
    run_dir = commands.folder / "pretrained"
    argv = [str(commands.folder / "base.py"), "--run-dir", str(run_dir)]
    mesh = ["--mesh.data", "0", "--mesh.fsdp", "2", "--mesh.model", "2"]

    layout = ["--mesh.values", "slots", "--steps", "20", "--log-every", "1"]
    assert commands.run("pretrained", "pretrain", *argv, *mesh, *layout) == 0
    out = capsys.readouterr().out
    assert "mesh: data=2 fsdp=2 model=2 values=slots\n" in out
    assert "batches: 5 rows and 3 of padding" in out
    usage_of = ["usage", str(run_dir), "--documents", "6"]
    assert commands.run("fewer", *usage_of, "--mesh.data", "1") == 0
    out = capsys.readouterr().out
    assert "model=2 values=slots; 4 of 8 devices left out" in out
    assert commands.run("count", *usage_of) == 0

    run = load_run(run_dir)
    assert run.model.layout.mesh.shape == {"data": 2, "fsdp": 2, "model": 2}
    counted = document_frequency.load(
        run_dir / "usage.safetensors", run.model_hash, 1, 64
    )
    assert counted.document_frequency.max() <= 6
    assert counted.document_frequency.sum() > 0


def test_eight_devices_finetune_by_muon_as_one_does(commands, base):
    optim = {"method": "full", "optimizer": "muon", "learning_rate": 0.001}
    run_dirs = []
    for mesh in (tiny.ONE, EIGHT["columns"]):
        run_dirs.append(commands.folder / f"{optim['method']}{mesh.model}")
        config = taught_config(base, run_dirs[-1], mesh, **optim)
        assert commands.run_config(run_dirs[-1].name, "finetune", config) == 0

    # An adaptive rule divides by sums of squares that may be next to 0.
    one, eight = map(losses, run_dirs)
    assert eight == pytest.approx(one, abs=1e-3)


def test_eight_devices_give_a_model_a_memory(commands):
    plain = commands.folder / "plain"
    config = tiny.pretrain_config(plain, 20)
    object.__setattr__(config.model, "memory", None)
    assert commands.run_config("plain", "pretrain", config) == 0
    memory = tiny.memory_config(num_keys=8, value_dim=12, placement="add")
    retrofit = RetrofitConfig(
        base=str(plain),
        run_dir=str(commands.folder / "healed"),
        steps=4,
        margin=10.0,
        log_every=1,
        mesh=EIGHT["everywhere"],
        memory=memory,
        data=config.data,
    )

    assert commands.run_config("healed", "retrofit", retrofit) == 0

    assert load_run(retrofit.run_dir).model.config.memory == memory


def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_written(
    commands, base, capsys
):
    for name, argv, why in (
        (
            "many",
            ["--mesh.data", "3", "--mesh.model", "3"],
            "is 9 devices, but there are 8",
        ),
        ("wide", ["--mesh.data", "1", "--mesh.model", "8"], "value_dim=12 is no mult"),
    ):
        run_dir = commands.folder / name
        config = [str(commands.folder / "base.py"), "--run-dir", str(run_dir)]
        assert commands.run(name, "pretrain", *config, *argv) == 2
        assert why in capsys.readouterr().err.replace("\n", " ")
        assert not run_dir.exists()
