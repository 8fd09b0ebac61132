"""The step of a run is known before anything is made, and takes what the run gives."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from smf_jax.config import (
    ConfigError,
    FinetuneConfig,
    LoraConfig,
    MeshConfig,
    OptimConfig,
)
from smf_jax.data.batches import Batch
from smf_jax.model.build import make_model
from smf_jax.optim.methods import make_method
from smf_jax.plan.step import planned_step
from smf_jax.runs.record import Lineage
from smf_jax.sharding import make_layout
from smf_jax.train.state import init_state
from tests.tiny import VOCAB, pretrain_config

MESH = MeshConfig(data=2, fsdp=2, model=2)
SMF = OptimConfig(method="smf", optimizer="sgd", learning_rate=1.0, top_t=5)
QUICK = {"xla_backend_optimization_level": 0}
LORA = OptimConfig(method="lora", lora=LoraConfig(rank=4))


def pretrained(mesh=MESH, **changes):
    config = pretrain_config("run", steps=9)
    model = dataclasses.replace(config.model, vocab_size=VOCAB)
    return dataclasses.replace(config, model=model, mesh=mesh, **changes)


def taught(**changes) -> Lineage:
    config = FinetuneConfig(
        **{"base": "run", "run_dir": "new", "optim": SMF, "mesh": MESH, "steps": 9}
        | {"batch_size": 6}
        | changes
    )
    return Lineage(pretrain=pretrained(), finetune=config)


def test_a_planned_step_takes_the_state_and_the_batch_of_a_run():
    config = pretrained()
    program = planned_step(Lineage(pretrain=config), jax.devices())
    layout = make_layout(config.mesh, config.compute, config.model.memory)
    method = make_method(config.optim, config.steps, config.values_lr_scale)
    model = make_model(config.model, 0, layout)
    _, state, frozen = init_state(model, method)
    rows = np.ones((config.data.batch_size, config.data.seq_len), np.int32)
    batch = Batch(*(rows,) * 6)
    batch = batch._replace(weights=rows.astype(np.float32))

    # What is compiled refuses other shapes, types and places.
    compiled = program.step.lower(*program.arguments).compile(QUICK)
    state, metrics = compiled(state, frozen, None, layout.shard_batch(batch))

    assert metrics["updated"]


def test_a_batch_that_is_taught_has_all_texts_of_its_facts():
    made = taught(teach="statements", seq_len=13)
    program = planned_step(made, jax.devices(), texts=3)

    # 6 facts of 3 texts, and 2 rows of padding for 4 ways; 13 tokens padded to eights.
    assert program.arguments[3].tokens.shape == (20, 16)


@functools.cache
def groups(method: str) -> dict:
    optim = {"smf": SMF, "lora": LORA}[method]
    return planned_step(taught(optim=optim), jax.devices()).groups


def test_only_smf_has_a_background():
    assert "background" in groups("smf")
    assert "background" not in groups("lora")


def test_every_argument_is_in_one_group():
    program = planned_step(taught(), jax.devices())

    want = sorted(leaf.shape for leaf in jax.tree.leaves(program.arguments))
    assert sorted(leaf.shape for leaf in jax.tree.leaves(program.groups)) == want
    (table,) = program.groups["memory values"].values()
    assert table.shape == (64, 12)


def test_one_device_is_one_of_those_that_are_named():
    last = jax.devices()[-1:]
    config = pretrained(MeshConfig())

    program = planned_step(Lineage(pretrain=config), last)

    for leaf in jax.tree.leaves(program.arguments):
        assert leaf.sharding.device_set == set(last)
    assert set(program.mesh.values()) == {1}


def test_how_many_statements_a_fact_has_must_be_told():
    with pytest.raises(ConfigError, match="--texts"):
        planned_step(taught(teach="both"), jax.devices())


def test_a_model_without_memory_is_not_taught_by_smf():
    made = taught()
    bare = dataclasses.replace(made.pretrain.model, memory=None)
    made = made._replace(pretrain=dataclasses.replace(made.pretrain, model=bare))

    with pytest.raises(ConfigError, match=r"optim\.method=smf"):
        planned_step(made, jax.devices())
