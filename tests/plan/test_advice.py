"""What does not fit is told with what would make it smaller, in flags that exist."""

import dataclasses

import pytest
import tyro

from smf_jax.config import (
    ComputeConfig,
    DataConfig,
    FinetuneConfig,
    MemoryConfig,
    ModelConfig,
    PretrainConfig,
    RetrofitConfig,
)
from smf_jax.plan.advice import what_to_change
from smf_jax.plan.outcome import Outcome
from smf_jax.plan.topology import find

GIB = 2**30
MEMORY = MemoryConfig(num_keys=512)
PRETRAIN = PretrainConfig(run_dir="r", model=ModelConfig(memory=MEMORY))
MESH = {"data": 8, "fsdp": 1, "model": 1, "values": "columns"}


def advice(config, topology="v5e-8", needs=20, mesh=MESH, **groups) -> str:
    sizes = {name.replace("_", " "): int(of * GIB) for name, of in groups.items()}
    outcome = Outcome(topology, mesh, False, needs=needs * GIB, groups=sizes)
    return "\n".join(what_to_change(outcome, find(topology), config))


def test_large_activations_are_made_smaller():
    lines = advice(PRETRAIN, dense_parameters=1)

    assert "--compute.remat" in lines
    assert "--compute.activations bfloat16" in lines
    assert "--grad_accum_steps 2" in lines
    assert "--data.batch-size 16" in lines
    assert "--mesh" not in lines


def test_what_is_done_already_is_not_told():
    small = ComputeConfig(remat=True, activations="bfloat16")
    config = dataclasses.replace(PRETRAIN, compute=small)

    assert "--compute" not in advice(config, dense_parameters=1)


def test_large_parameters_are_split():
    lines = advice(PRETRAIN, dense_parameters=10, optimizer=9)

    assert "--mesh.fsdp 8" in lines
    assert "--compute" not in lines


def test_large_tables_are_split_by_slots_or_made_of_fewer():
    lines = advice(PRETRAIN, memory_values=18, optimizer=1)

    assert "--mesh.values everywhere" in lines
    assert "--model.memory.num-keys 256" in lines


def test_parameters_that_are_split_already_need_more_ways_of_the_layers():
    mesh = MESH | {"data": 1, "fsdp": 8}

    assert "--mesh.model 2" in advice(PRETRAIN, mesh=mesh, dense_parameters=19)


def test_the_next_larger_slice_is_named():
    assert "--topology v5e-16" in advice(PRETRAIN, dense_parameters=19)


def test_the_share_of_a_gpu_that_jax_takes_is_named(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)

    lines = advice(PRETRAIN, "h100x8", needs=70, dense_parameters=60)

    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.92: jax takes 75%" in lines


FINETUNE = FinetuneConfig(base="b", run_dir="r")
RETROFIT = RetrofitConfig(base="b", run_dir="r", data=DataConfig())


@pytest.mark.parametrize("config", [PRETRAIN, FINETUNE, RETROFIT])
def test_what_is_told_can_be_typed(config):
    lines = advice(config, needs=40, memory_values=18).splitlines()

    flags = [line.split(":")[0].split() for line in lines if "--topology" not in line]
    assert len(flags) > 4
    for arguments in flags:
        changed = tyro.cli(
            type(config),
            default=config,
            args=arguments,
            config=(tyro.conf.AvoidSubcommands,),
        )
        assert changed != config
