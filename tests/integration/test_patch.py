"""Patches of taught runs: shown, applied and reverted, over one table or another."""

import numpy as np
import pytest

from smf_jax.config import CalibratedConfig, MemoryConfig, OptimConfig, PerFactConfig
from smf_jax.runs.load import load_run
from tests.tiny import bits, finetune_config, named, retrofit_config

TEACH = OptimConfig(
    method="smf",
    optimizer="normalized",
    learning_rate=0.7,
    select="contrastive",
    per_fact=PerFactConfig(rows=7),
)
MEMORY = MemoryConfig(
    layers=(1,),
    num_keys=16,
    num_heads=2,
    top_k=2,
    key_dim=8,
    value_dim=16,
    placement="add",
    calibrated=CalibratedConfig(),
)
PATCH, SLOTS = "patch.safetensors", "slots.safetensors"


@pytest.fixture(scope="module")
def calibrated(commands, imported):
    """Returns a run with a calibrated memory of which no row exists."""
    run_dir = commands.folder / "calibrated"
    config = retrofit_config(imported, run_dir, memory=MEMORY, steps=0)
    assert commands.run_config("calibrated", config) == 0
    return run_dir


def teach(commands, base, name, facts=None):
    run_dir = commands.folder / name
    config = finetune_config(base, run_dir, TEACH, steps=3, facts=facts)
    assert commands.run_config(name, config) == 0
    return run_dir


@pytest.fixture(scope="module")
def monday(commands, calibrated):
    return teach(commands, calibrated, "monday")


@pytest.fixture(scope="module")
def tuesday(commands, monday):
    """Returns a run taught over `monday`, other facts of the same words."""
    path = commands.folder / "tuesday.jsonl"
    corpus = load_run(monday).lineage.data.world
    del corpus
    return teach(commands, monday, "tuesday")


def params(run_dir):
    return named(load_run(run_dir).model)


def assert_same_model(one, other):
    first, second = params(one), params(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(bits(second[name]), bits(array))


def test_probe(run, base, taught, calibrated, monday, tuesday, tmp_path):
    for r in (taught, monday, tuesday):
        print(run("patch", "show", r))
    print(run("patch", "apply", calibrated, monday / PATCH, tmp_path / "a"))
    assert_same_model(monday, tmp_path / "a")
    print(run("patch", "apply", tmp_path / "a", tuesday / PATCH, tmp_path / "b"))
    assert_same_model(tuesday, tmp_path / "b")
    print(run("patch", "revert", tmp_path / "b", tmp_path / "c"))
    assert_same_model(monday, tmp_path / "c")
    print(run("patch", "revert", tmp_path / "c", tmp_path / "d"))
    assert_same_model(calibrated, tmp_path / "d")
    print(run("patch", "apply", base, taught / PATCH, tmp_path / "e"))
    assert_same_model(taught, tmp_path / "e")
    print(run("patch", "revert", taught, tmp_path / "f"))
    assert_same_model(base, tmp_path / "f")
    for n in "abcdef":
        print(n, run("verify", tmp_path / n))
    print([p.name for p in tmp_path.iterdir()])
    print([p.name for p in (tmp_path / "d").iterdir()])
    assert 0
