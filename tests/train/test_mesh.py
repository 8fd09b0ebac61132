"""A step on a mesh of eight devices equals the step on one.

By default on four of the ten meshes; on all with SMF_MESH_EACH=1.
"""

import functools
import itertools
import os

import jax
import numpy as np
import pytest
from flax import nnx

from smf_jax.config import (
    CalibratedConfig,
    ComputeConfig,
    LoraConfig,
    MeshConfig,
    OptimConfig,
    PerFactConfig,
)
from smf_jax.data.batches import with_loss_positions
from smf_jax.model.lora import add_lora
from smf_jax.model.transformer import Transformer
from smf_jax.optim.methods import make_method
from smf_jax.sharding import ONE_DEVICE, make_layout
from smf_jax.slots.document_frequency import Background
from smf_jax.train.state import background_shardings, init_state, state_shardings
from smf_jax.train.step import make_step
from smf_jax.verbs.usage import make_read_counter
from tests.tiny import bits, fill, make_batch, memory_config, model_config, moved_rows

NUM_SLOTS, VALUE_DIM, STEPS = 64, 16, 3
EVERY_MESH = [
    shape for shape in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(shape) == 8
]
EACH_AXIS = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
MESHES = EVERY_MESH if os.environ.get("SMF_MESH_EACH") == "1" else EACH_AXIS
# Rates at which rounding does not grow from step to step.
SGD = {"optimizer": "sgd", "max_grad_norm": 1.0}
METHODS = {
    "smf": OptimConfig(method="smf", learning_rate=1.0, top_t=8, **SGD),
    "pretraining": OptimConfig(method="full", learning_rate=0.05, **SGD),
    "lora": OptimConfig(
        method="lora", learning_rate=0.05, lora=LoraConfig(rank=4, alpha=1.0), **SGD
    ),
}
TEACH = {"method": "smf", "optimizer": "normalized", "learning_rate": 0.1}
METHODS_OF_FACTS = {  # of a calibrated memory
    "contrastive": OptimConfig(
        top_t=8, select="contrastive", per_fact=PerFactConfig(answered=2.9), **TEACH
    ),
    "rows of each fact": OptimConfig(per_fact=PerFactConfig(rows=3), **TEACH),
}
REMAT, SCAN = {"remat": True}, {"scan_layers": True}
SPLITS = ("columns", "slots", "everywhere")
WRITTEN = CalibratedConfig(num_rows=24)
MEMORIES = {
    "one memory": {"layers": (1,)},
    "two memories": {"layers": (0, 1), "share_values": True},
    "two tables": {"layers": (0, 1), "share_values": False},
    "last of four": {"layers": (3,)},
    "calibrated": {"layers": (1,), "placement": "add", "calibrated": WRITTEN},
}


def config_of(memory: str):
    sizes = {"num_keys": 8, "value_dim": VALUE_DIM}
    return model_config(
        vocab_size=16,
        dim=16,
        num_layers=4 if memory == "last of four" else 2,
        hidden_dim=24,
        memory=memory_config(**sizes | MEMORIES[memory]),
    )


def layout_on(shape, split="columns", **compute):
    data, fsdp, model = shape
    mesh = MeshConfig(data=data, fsdp=fsdp, model=model, values=split)
    return make_layout(mesh, ComputeConfig(**compute), None)


def train(
    method: str,
    memory: str,
    layout,
    parts: int = 1,
    loss_positions=False,
    weight=1.0,
    balanced=True,
):
    """Returns the model's parameters before and after some steps, and their metrics."""
    config, optim = config_of(memory), (METHODS | METHODS_OF_FACTS)[method]

    def make():
        model = Transformer(config, layout, rngs=nnx.Rngs(0))
        if method == "lora":
            add_lora(model, optim.lora, rngs=nnx.Rngs(1))
        return model

    rule = make_method(optim, STEPS, facts_per_step=13)
    graph, state, frozen = init_state(fill(make), rule)
    before = jax.tree.map(np.asarray, state.trainable)
    rng = np.random.default_rng(0)
    background = None
    if method in ("smf", "contrastive"):
        shape = (config.memory.num_tables, config.memory.table_rows)
        frequency = rng.integers(0, 9, shape, np.int32)
        frequency[:, config.memory.num_rows or NUM_SLOTS :] = 9  # unused rows
        background = Background(frequency, np.int32(9))
        if method == "contrastive":
            background = Background(*background[:2], *background[:2])
        shardings = background_shardings(layout, with_facts=method == "contrastive")
        background = layout.device_put(background, shardings)
    balance_weight = 1.0 if method == "pretraining" and balanced and parts == 1 else 0.0
    step = jax.jit(
        make_step(graph, config.memory, rule, parts, balance_weight, layout=layout)
    )
    rows = []
    for number in range(STEPS):
        # Thirteen rows are no multiple of anything: some devices get rows of padding.
        lengths = tuple(rng.integers(1, 9, 13))
        batch = make_batch(lengths, seq=8, seed=number, vocab=16)
        batch = batch._replace(weights=np.float32(weight) * batch.weights)
        if method == "rows of each fact":
            own = rng.integers(0, config.memory.num_rows, (13, 3), np.int32)
            batch = batch._replace(own_rows=own)
        if loss_positions:
            (batch,) = with_loss_positions([batch])
        state, metrics = step(
            state, frozen, background, layout.shard_batch(batch, parts)
        )
        rows.append({name: float(number) for name, number in metrics.items()})
    where = state_shardings(layout, rule, state)
    for leaf, sharding in zip(*map(jax.tree.leaves, (state, where)), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    return before, jax.tree.map(np.asarray, state), rows


@functools.cache
def on_one_device(method: str, memory: str, balanced=True):
    return train(method, memory, ONE_DEVICE, balanced=balanced)


def assert_same(got, want, method):
    (_, after, rows), (before, want_after, want_rows) = got, want
    if method == "smf" or method in METHODS_OF_FACTS:
        for old, new, want_new in zip(
            *map(jax.tree.leaves, (before, after.trainable, want_after.trainable)),
            strict=True,
        ):
            assert len(moved_rows(old, want_new)) > 8
            assert moved_rows(old, new) == moved_rows(old, want_new)
    for mine, theirs in zip(rows, want_rows, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5), name
    # float32 sums in another order
    for mine, theirs in zip(*map(jax.tree.leaves, (after, want_after)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "split", "shape"),
    [
        (method, split, shape)
        for method in ("smf", "pretraining")
        for split in SPLITS
        for shape in MESHES
        # Slots split over one device are columns split over one: the same program.
        if (split != "slots" or shape[2] > 1)
        and (method, split) != ("pretraining", "everywhere")
    ],
    ids=str,
)
def test_a_mesh_does_what_one_device_does(method, split, shape):
    got = train(method, "one memory", layout_on(shape, split))

    assert_same(got, on_one_device(method, "one memory"), method)


@pytest.mark.parametrize("method", METHODS_OF_FACTS)
@pytest.mark.parametrize("split", SPLITS)
def test_a_mesh_teaches_a_calibrated_memory_what_one_device_does(method, split):
    got = train(method, "calibrated", layout_on((2, 2, 2), split))

    assert_same(got, on_one_device(method, "calibrated"), method)


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_a_mesh_teaches_by_lora_what_one_device_does(shape):
    got = train("lora", "one memory", layout_on(shape))

    assert_same(got, on_one_device("lora", "one memory"), "lora")


def test_slots_split_over_all_devices_are_pretrained_as_on_one():
    got = train("pretraining", "one memory", layout_on((2, 2, 2), "everywhere"))

    assert_same(got, on_one_device("pretraining", "one memory"), "pretraining")


@pytest.mark.parametrize("split", SPLITS)
def test_no_device_writes_a_row_if_the_loss_is_not_finite(split):
    layout = layout_on((2, 2, 2), split)

    before, after, metrics = train("smf", "two tables", layout, weight=np.nan)

    assert [row["updated"] for row in metrics] == [0.0] * STEPS
    for old, new in zip(*map(jax.tree.leaves, (before, after.trainable)), strict=True):
        np.testing.assert_array_equal(bits(new), bits(old))


@pytest.mark.parametrize("memory", ["two memories", "two tables"])
@pytest.mark.parametrize(
    ("method", "split"), [("smf", "everywhere"), ("pretraining", "slots")]
)
def test_layers_on_a_mesh_share_a_table_or_have_one_each(method, split, memory):
    got = train(method, memory, layout_on((2, 2, 2), split))

    assert_same(got, on_one_device(method, memory), method)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_in_parts_on_a_mesh_is_the_batch_on_one_device(method):
    # With the positions of the targets that have a loss, taken on each device.
    got = train(
        method, "one memory", layout_on((2, 2, 2)), parts=3, loss_positions=True
    )

    want = on_one_device(method, "one memory", balanced=False)
    assert_same(got, want, method)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize(
    "compute",
    [{"remat": True}, {"scan_layers": True}, {"remat": True, "scan_layers": True}],
    ids=str,
)
def test_remat_and_a_scan_over_layers_change_nothing(shape, compute):
    got = train("pretraining", "last of four", layout_on(shape, **compute))

    assert_same(got, on_one_device("pretraining", "last of four"), "pretraining")


def test_activations_in_bfloat16_change_little():
    layout = layout_on((2, 2, 2), activations="bfloat16")

    _, state, rows = train("pretraining", "one memory", layout)
    _, _, want = on_one_device("pretraining", "one memory")

    # The parameters stay float32; 8 bits of a bfloat16 make an error of about 2**-8.
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.trainable)} == {"float32"}
    assert rows[0]["loss"] == pytest.approx(want[0]["loss"], rel=2**-6)
    assert rows[0]["loss"] != want[0]["loss"]


def counts_on(layout):
    config = config_of("one memory")
    model = fill(lambda: Transformer(config, layout, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(model)
    params = nnx.as_pure(params)
    params = layout.device_put(params, layout.param_shardings(params))
    count = make_read_counter(graph, config.memory, layout)
    return count((params,), layout.shard_batch(make_batch(vocab=16)))


@pytest.mark.parametrize("split", SPLITS)
def test_every_device_gets_the_read_counts_of_all(split):
    counts = counts_on(layout_on((2, 2, 2), split))

    assert counts.is_fully_replicated
    np.testing.assert_array_equal(counts, counts_on(ONE_DEVICE))
