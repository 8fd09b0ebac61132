"""What a compiled step sends around, and what it holds: looked up in its program."""

import math
import re

import pytest

from smf_jax.config import (
    ComputeConfig,
    FinetuneConfig,
    MemoryConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
)
<<<<<<< HEAD:tests/train/test_program.py
from smf_jax.sharding import make_placement
from smf_jax.train.program import step_program
=======
from smf_jax.data.batches import Batch
from smf_jax.model.build import make_model
from smf_jax.optim.methods import make_method
from smf_jax.plan.step import planned_step
from smf_jax.sharding import make_placement
from smf_jax.train.record import Made
from smf_jax.train.state import split_for_training
from tests.tiny import VOCAB, pretrain_config
>>>>>>> d2139f9 (plan: take the step from train/program, split it into groups here):tests/plan/test_step.py

HEADS, TOP_K, VALUE_DIM, TOP_T = 4, 8, 96, 50
ROWS, SEQ, DIM, VOCAB, NUM_KEYS = 16, 24, 80, 512, 128
LAYOUTS = ("columns", "slots", "everywhere")
# All dimensions differ, of tables and tokens, and so do their parts.
SMF = FinetuneConfig(
    base="base",
    run_dir="run",
    optim=OptimConfig(
        method="smf", optimizer="sgd", learning_rate=1.0, momentum=0.9, top_t=TOP_T
    ),
)
PRETRAIN = PretrainConfig(run_dir="run")


def compiled(config, layout, num_keys=NUM_KEYS, layers=(1,)):
    memory = MemoryConfig(
        layers=layers,
        num_keys=num_keys,
        num_heads=HEADS,
        top_k=TOP_K,
        key_dim=32,
        value_dim=VALUE_DIM,
    )
    model = ModelConfig(
        vocab_size=VOCAB, dim=DIM, num_layers=2, hidden_dim=160, memory=memory
    )
    mesh = MeshConfig(data=2, fsdp=2, model=2, values=layout)
    placement = make_placement(mesh, ComputeConfig(), memory)
    program = step_program(config, model, placement, ROWS, SEQ)
    return program.step.lower(*program.arguments).compile()


<<<<<<< HEAD:tests/train/test_program.py
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
    """Returns the shapes of all that a program computes."""
    shapes = re.findall(r"= \w+\[([\d,]*)\]", program.as_text())
    return {tuple(map(int, shape.split(","))) for shape in shapes if shape}


def shard_of_table(layout) -> tuple[int, int]:
    """Returns the shape of one device's part."""
    rows, columns = {"columns": (1, 2), "slots": (2, 1), "everywhere": (8, 1)}[layout]
    return NUM_KEYS**2 // rows, VALUE_DIM // columns
=======
def test_a_planned_step_takes_the_state_and_the_batch_of_a_run():
    config = pretrained()
    program = planned_step(Made(pretrain=config), jax.devices())
    placement = make_placement(config.mesh, config.compute, config.model.memory)
    method = make_method(config.optim, config.steps, config.values_rate)
    model = make_model(config.model, 0, placement)
    _, state, frozen = split_for_training(model, method)
    rows = np.ones((config.data.batch_size, config.data.seq_len), np.int32)
    batch = Batch(*(rows for _ in Batch._fields))
    batch = batch._replace(weights=rows.astype(np.float32))

    # What is compiled refuses other shapes, types and places.
    compiled = program.step.lower(*program.arguments).compile(QUICK)
    state, metrics = compiled(state, frozen, None, placement.share(batch))

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
>>>>>>> d2139f9 (plan: take the step from train/program, split it into groups here):tests/plan/test_step.py


def as_large_as_table(shapes, layout) -> set[tuple[int, ...]]:
    least = math.prod(shard_of_table(layout))
    return {shape for shape in shapes if math.prod(shape) >= least}


<<<<<<< HEAD:tests/train/test_program.py
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", [SMF, PRETRAIN], ids=["smf", "pretraining"])
def test_no_table_and_no_row_that_is_not_summed_goes_between_devices(config, layout):
    sent = {shape for _, shape in collectives(compiled(config, layout))}
    reads, widths = HEADS * TOP_K, {VALUE_DIM, VALUE_DIM // 2}
=======
def test_every_argument_is_in_one_group():
    program = planned_step(taught(), jax.devices())
>>>>>>> d2139f9 (plan: take the step from train/program, split it into groups here):tests/plan/test_step.py

    assert sent
    assert as_large_as_table(sent, layout) == set()
    assert {s for s in sent if reads in s[:-1] and s[-1] in widths} == set()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layers", [(1,), (0, 1)], ids=str)
def test_teaching_by_smf_makes_no_array_of_the_shape_of_its_table(layout, layers):
    program = compiled(SMF, layout, layers=layers)
    shard = shard_of_table(layout)

<<<<<<< HEAD:tests/train/test_program.py
    # The table and its momentum are given, written in place, and returned.
    assert as_large_as_table(arrays(program), layout) == {shard}
    aliased = program.memory_analysis().alias_size_in_bytes
    assert aliased >= 2 * 4 * math.prod(shard)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranking_gathers_no_keys_scores_or_tokens(layout):
    kinds = collectives(compiled(SMF, layout))

    # What is gathered: parameters, the best slots of each device, and, where each holds
    # other slots, the reads of a token: as many as heads x top_k.
    reads = HEADS * TOP_K
    gathered = [shape for kind, shape in kinds if kind == "all-gather"]
    of_tokens = [shape for shape in gathered if shape[:2] in ((ROWS, SEQ), (8, SEQ))]
    want = [(ROWS, SEQ, reads)] * 2 if layout == "everywhere" else []
    assert [shape for shape in of_tokens if shape[-1] != 1] == want
    assert not [s for s in gathered if NUM_KEYS in s[2:] and len(s) > 4]
=======
    program = planned_step(Made(pretrain=config), last)

    for leaf in jax.tree.leaves(program.arguments):
        assert leaf.sharding.device_set == set(last)
    assert set(program.mesh.values()) == {1}


def test_how_many_statements_a_fact_has_must_be_told():
    with pytest.raises(ConfigError, match="--texts"):
        planned_step(taught(teach="both"), jax.devices())
>>>>>>> d2139f9 (plan: take the step from train/program, split it into groups here):tests/plan/test_step.py


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_smf_holds_beside_its_table_hardly_grows_with_it(layout):
    beside = []
    for num_keys in (256, 512):
        analysis = compiled(SMF, layout, num_keys).memory_analysis()
        beside.append(analysis.temp_size_in_bytes)

<<<<<<< HEAD:tests/train/test_program.py
    # Counts, scores and the places of chosen rows: some words a slot, no row.
    assert beside[1] - beside[0] <= 20 * (512**2 - 256**2)
=======
    with pytest.raises(ConfigError, match=r"optim\.method=smf"):
        planned_step(made, jax.devices())
>>>>>>> d2139f9 (plan: take the step from train/program, split it into groups here):tests/plan/test_step.py
