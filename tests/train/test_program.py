"""What a compiled step sends around, and what it holds: looked up in its program."""

import math
import re

import pytest
from smf_jax.train.program import step_program

from smf_jax.config import (
    ComputeConfig,
    FinetuneConfig,
    MemoryConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
)
from smf_jax.sharding import make_layout
from tests.tiny import AS_FOR_USERS

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
    layout = make_layout(mesh, ComputeConfig(), memory)
    program = step_program(config, model, layout, ROWS, SEQ)
    return program.step.lower(*program.arguments).compile(AS_FOR_USERS)


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


def as_large_as_table(shapes, layout) -> set[tuple[int, ...]]:
    least = math.prod(shard_of_table(layout))
    return {shape for shape in shapes if math.prod(shape) >= least}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", [SMF, PRETRAIN], ids=["smf", "pretraining"])
def test_no_table_and_no_row_that_is_not_summed_goes_between_devices(config, layout):
    sent = {shape for _, shape in collectives(compiled(config, layout))}
    reads, widths = HEADS * TOP_K, {VALUE_DIM, VALUE_DIM // 2}

    assert sent
    assert as_large_as_table(sent, layout) == set()
    assert {s for s in sent if reads in s[:-1] and s[-1] in widths} == set()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layers", [(1,), (0, 1)], ids=str)
def test_teaching_by_smf_makes_no_array_of_the_shape_of_its_table(layout, layers):
    program = compiled(SMF, layout, layers=layers)
    shard = shard_of_table(layout)

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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_smf_holds_beside_its_table_hardly_grows_with_it(layout):
    beside = []
    for num_keys in (256, 512):
        analysis = compiled(SMF, layout, num_keys).memory_analysis()
        beside.append(analysis.temp_size_in_bytes)

    # Counts, scores and the places of chosen rows: some words a slot, no row.
    assert beside[1] - beside[0] <= 20 * (512**2 - 256**2)
