"""The planned step takes a run's real arrays; its program sends no table."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest

from smf_jax.config import (
    ConfigError,
    DataConfig,
    FinetuneConfig,
    LoraConfig,
    MemoryConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    PerFactConfig,
    PretrainConfig,
    RetrofitConfig,
)
from smf_jax.data.batches import Batch
from smf_jax.model.build import make_model
from smf_jax.optim.methods import make_method
from smf_jax.plan.abstract_step import abstract_step, batch_shape
from smf_jax.runs.record import Lineage
from smf_jax.sharding import make_layout
from smf_jax.train.state import init_state
from tests.tiny import AS_FOR_USERS, VOCAB, calibrated_config, pretrain_config

MESH = MeshConfig(data=2, fsdp=2, model=2)
SMF = OptimConfig(method="smf", optimizer="adamw", top_t=50)
LORA = OptimConfig(method="lora", lora=LoraConfig(rank=4))


def pretrained(mesh=MESH) -> Lineage:
    config = dataclasses.replace(pretrain_config("run", steps=9), mesh=mesh)
    model = dataclasses.replace(config.model, vocab_size=VOCAB)
    return Lineage(dataclasses.replace(config, model=model))


def taught(**changes) -> Lineage:
    config = {"optim": SMF, "mesh": MESH, "batch_size": 6} | changes
    finetune = FinetuneConfig(base="run", run_dir="new", **config)
    return pretrained()._replace(finetune=finetune)


def planned(lineage: Lineage, texts: int | None = None, devices=None):
    shape = batch_shape(lineage, texts)
    return abstract_step(lineage, *shape, devices or jax.devices())


def test_a_planned_step_takes_the_arrays_of_a_run():
    lineage = pretrained()
    config = lineage.own
    layout = make_layout(config.mesh, config.compute, config.model.memory)
    method = make_method(config.optim, config.steps, config.values_lr_scale)
    model = make_model(config.model, 0, layout)
    _, state, frozen = init_state(model, method)
    rows = np.ones((config.data.batch_size, config.data.seq_len), np.int32)
    batch = Batch(*(rows,) * 6)._replace(weights=rows.astype(np.float32))
    real = (state, frozen, None, layout.shard_batch(batch))

    def compare(want, got):
        assert (want.shape, want.dtype) == (got.shape, got.dtype)
        assert want.sharding.is_equivalent_to(got.sharding, got.ndim)

    jax.tree.map(compare, planned(lineage).arguments, real)


def test_a_batch_of_finetuning_has_all_texts_of_its_facts():
    lineage = taught(teach="statements", seq_len=13)

    # 6 facts of 3 texts, and 2 rows of padding for 4 devices; 13 tokens padded to 16.
    assert planned(lineage, texts=3).arguments[3].tokens.shape == (20, 16)
    with pytest.raises(ConfigError, match="--texts"):
        planned(lineage)


def test_every_argument_is_in_one_group():
    smf, lora = planned(taught()), planned(taught(optim=LORA))

    for step in (smf, lora):
        want = sorted(leaf.shape for leaf in jax.tree.leaves(step.arguments))
        assert sorted(leaf.shape for leaf in jax.tree.leaves(step.groups)) == want
        (table,) = step.groups["memory values"].values()
        assert table.shape == (64, 12)
    assert smf.groups.keys() - lora.groups.keys() == {"background"}
    assert lora.groups.keys() - smf.groups.keys() == {"parameters"}


def test_a_single_device_is_that_of_the_topology():
    last = jax.devices()[-1:]

    step = planned(pretrained(MeshConfig()), devices=last)

    for leaf in jax.tree.leaves(step.arguments):
        assert leaf.sharding.device_set == set(last)
    assert step.mesh == {"data": 1, "fsdp": 1, "model": 1}


def test_a_model_without_memory_is_not_taught_by_smf():
    lineage = taught()
    bare = dataclasses.replace(lineage.model, memory=None)
    pretrain = dataclasses.replace(lineage.pretrain, model=bare)

    with pytest.raises(ConfigError, match=r"optim\.method=smf"):
        planned(lineage._replace(pretrain=pretrain))


# --- a calibrated memory ---


def calibrated(**optim) -> Lineage:
    """Returns the teaching of a memory of which no row exists yet."""
    bare = dataclasses.replace(pretrained().pretrain.model, memory=None)
    base = dataclasses.replace(pretrained().pretrain, model=bare)
    retrofit = RetrofitConfig(
        base="run",
        run_dir="calibrated",
        memory=calibrated_config(num_rows=0, value_dim=bare.dim),
        data=base.data,
    )
    settings = {"method": "smf", "optimizer": "sgd", "select": "contrastive"}
    lineage = taught(optim=OptimConfig(**settings | optim))
    return lineage._replace(pretrain=base, retrofit=retrofit)


def test_a_calibrated_table_is_planned_with_a_row_for_each_slot_that_can_be_read():
    (table,) = planned(calibrated()).groups["memory values"].values()

    # all 25 slots, which are fewer than the reads of a batch, in units of 512
    assert table.shape == (512, 16)


def test_the_background_of_a_calibrated_memory_also_counts_facts():
    step = planned(calibrated(top_t=9))

    _, _, background, batch = step.arguments
    assert background.fact_frequency.shape == (1, 512)
    assert background.num_facts.shape == ()
    assert batch.own_rows is None
    step.step.trace(*step.arguments)


def test_rows_of_each_fact_are_an_argument_in_place_of_a_background():
    step = planned(calibrated(per_fact=PerFactConfig(rows=7, answered=0.3)))

    _, _, background, batch = step.arguments
    assert background is None
    assert batch.own_rows.shape == (8, 7)  # 6 facts, and 2 rows of padding
    step.step.trace(*step.arguments)


# --- the compiled program ---

HEADS, TOP_K, VALUE_DIM, NUM_KEYS = 4, 8, 96, 128
ROWS, SEQ = 16, 24
# All dimensions of tables and tokens differ, and so do their shards. Those of a table:
SHARDS = {
    "columns": (NUM_KEYS**2, VALUE_DIM // 2),
    "slots": (NUM_KEYS**2 // 2, VALUE_DIM),
    "everywhere": (NUM_KEYS**2 // 8, VALUE_DIM),
}
SIZES = {"num_heads": HEADS, "top_k": TOP_K, "value_dim": VALUE_DIM}


@functools.cache
def compiled(method: str, layout: str, num_keys: int = NUM_KEYS, layers=(1,)):
    memory = MemoryConfig(layers=layers, num_keys=num_keys, key_dim=32, **SIZES)
    model = ModelConfig(vocab_size=512, dim=80, num_layers=2, memory=memory)
    mesh = dataclasses.replace(MESH, values=layout)
    data = DataConfig(batch_size=ROWS, seq_len=SEQ)
    lineage = Lineage(PretrainConfig(run_dir="base", model=model, data=data, mesh=mesh))
    if method == "smf":  # else all parameters, by pretraining
        finetune = FinetuneConfig(base="base", run_dir="run", optim=SMF, mesh=mesh)
        lineage = lineage._replace(finetune=finetune)
    step = abstract_step(lineage, ROWS, SEQ, jax.devices())
    return step.step.lower(*step.arguments).compile(AS_FOR_USERS)


def collectives(program) -> list[tuple[str, tuple[int, ...]]]:
    """Returns the kind and the shape of every array that goes between devices."""
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    found = re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", program.as_text())
    return [
        (kind, tuple(int(size) for size in shape.split(",") if size))
        for shapes, kind in found
        for shape in re.findall(r"\w+\[([\d,]*)\]", shapes)
    ]


def arrays(program) -> set[tuple[int, ...]]:
    """Returns the shapes of all arrays that a program computes."""
    shapes = re.findall(r"= \w+\[([\d,]*)\]", program.as_text())
    return {tuple(map(int, shape.split(","))) for shape in shapes if shape}


def as_large_as_table(shapes, layout) -> set[tuple[int, ...]]:
    return {s for s in shapes if math.prod(s) >= math.prod(SHARDS[layout])}


@pytest.mark.parametrize("layout", SHARDS)
@pytest.mark.parametrize("method", ["smf", "full"])
def test_no_table_and_no_row_before_its_sum_goes_between_devices(method, layout):
    sent = {shape for _, shape in collectives(compiled(method, layout))}
    reads, widths = HEADS * TOP_K, {VALUE_DIM, VALUE_DIM // 2}

    assert sent
    assert as_large_as_table(sent, layout) == set()
    assert {s for s in sent if reads in s[:-1] and s[-1] in widths} == set()


@pytest.mark.parametrize(
    "case", [*((layout,) for layout in SHARDS), ("everywhere", NUM_KEYS, (0, 1))]
)
def test_smf_computes_no_array_as_large_as_its_table(case):
    program, shard = compiled("smf", *case), SHARDS[case[0]]

    # The table and its moments are arguments, and updated in place.
    assert as_large_as_table(arrays(program), case[0]) == {shard}
    aliased = program.memory_analysis().alias_size_in_bytes
    assert aliased >= 3 * 4 * math.prod(shard)


@pytest.mark.parametrize("layout", SHARDS)
def test_ranking_gathers_no_keys_scores_or_tokens(layout):
    kinds = collectives(compiled("smf", layout))

    # What is gathered: parameters, the best slots of each device, and, where each holds
    # other slots, the reads of a token: as many as heads x top_k.
    reads = HEADS * TOP_K
    gathered = [shape for kind, shape in kinds if kind == "all-gather"]
    of_tokens = [shape for shape in gathered if shape[:2] in ((ROWS, SEQ), (8, SEQ))]
    want = [(ROWS, SEQ, reads)] * 2 if layout == "everywhere" else []
    assert [shape for shape in of_tokens if shape[-1] != 1] == want
    assert not [s for s in gathered if NUM_KEYS in s[2:] and len(s) > 4]


@pytest.mark.parametrize("layout", SHARDS)
def test_what_smf_holds_beside_its_table_hardly_grows_with_it(layout):
    small, large = (
        program.memory_analysis().temp_size_in_bytes
        for program in (compiled("smf", layout), compiled("smf", layout, 2 * NUM_KEYS))
    )

    # Counts, scores and the places of chosen rows: some words per slot, no row.
    assert large - small <= 20 * 3 * NUM_KEYS**2
