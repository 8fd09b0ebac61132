"""On every mesh of eight devices a step does what it does on one."""

import functools
import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from smf_jax.config import ComputeConfig, LoraConfig, MeshConfig, OptimConfig
from smf_jax.model.lora import add_lora
from smf_jax.model.transformer import Transformer
from smf_jax.optim.methods import make_method
from smf_jax.sharding import ONE_DEVICE, make_placement
from smf_jax.train.state import split_for_training
from smf_jax.train.step import (
    Background,
    background_shardings,
    make_step,
    state_shardings,
)
from tests.tiny import fill, jit, make_batch, memory_config, model_config, moved_rows

NUM_SLOTS, VALUE_DIM, STEPS = 64, 16, 3
MESHES = [
    (data, fsdp, model)
    for data, fsdp, model in itertools.product((1, 2, 4, 8), repeat=3)
    if data * fsdp * model == 8
]
SGD = {"optimizer": "sgd", "learning_rate": 1.0}
METHODS = {
    "smf": OptimConfig(method="smf", top_t=8, momentum=0.5, clip_norm=1.0, **SGD),
    "pretraining": OptimConfig(method="full", clip_norm=1.0, **SGD),
    "lora": OptimConfig(method="lora", lora=LoraConfig(rank=4), **SGD),
}
LAYOUTS = ("columns", "slots", "everywhere")
MEMORIES = {
    "one memory": {"layers": (1,)},
    "two memories": {"layers": (1, 2), "share_values": True},
}


def config_of(memory: str):
    sizes = {"num_keys": 8, "value_dim": VALUE_DIM}
    return model_config(
        vocab_size=16,
        dim=16,
        num_layers=3,
        hidden_dim=24,
        memory=memory_config(**sizes | MEMORIES[memory]),
    )


def placement_on(shape, layout="columns", **compute):
    data, fsdp, model = shape
    mesh = MeshConfig(data=data, fsdp=fsdp, model=model, values=layout)
    return make_placement(mesh, ComputeConfig(**compute), None)


def train(method: str, memory: str, placement, parts: int = 1):
    """Returns the model's parameters before and after some steps, and their metrics."""
    config, optim = config_of(memory), METHODS[method]

    def make():
        model = Transformer(config, placement, rngs=nnx.Rngs(0))
        if method == "lora":
            add_lora(model, optim.lora, rngs=nnx.Rngs(1))
        return model

    rule = make_method(optim, STEPS)
    graph, state, frozen = split_for_training(fill(make), rule)
    before = jax.tree.map(np.asarray, state.trainable)
    rng = np.random.default_rng(0)
    background = None
    if method == "smf":
        frequency = rng.integers(0, 9, (1, NUM_SLOTS), np.int32)
        background = placement.put(
            Background(frequency, np.int32(9)), background_shardings(placement)
        )
    balance = 1.0 if method == "pretraining" else 0.0
    step = jit(
        make_step(graph, config.memory, rule, parts, balance, placement=placement)
    )
    told = []
    for number in range(STEPS):
        # Thirteen rows are no multiple of anything: some devices get rows of padding.
        lengths = tuple(rng.integers(1, 9, 13))
        batch = make_batch(lengths, seq=8, seed=number, vocab=16)
        state, metrics = step(state, frozen, background, placement.share(batch, parts))
        told.append({name: float(number) for name, number in metrics.items()})
    where = state_shardings(placement, rule, state)
    for leaf, sharding in zip(*map(jax.tree.leaves, (state, where)), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    return before, jax.tree.map(np.asarray, state), told


@functools.cache
def on_one_device(method: str, memory: str):
    return train(method, memory, ONE_DEVICE)


def assert_same(got, want, method):
    (_, after, told), (before, want_after, want_told) = got, want
    if method == "smf":
        for old, new, want_new in zip(
            *map(jax.tree.leaves, (before, after.trainable, want_after.trainable)),
            strict=True,
        ):
            assert len(moved_rows(old, want_new)) > 8
            assert moved_rows(old, new) == moved_rows(old, want_new)
    for mine, theirs in zip(told, want_told, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5), name
    # float32 sums in another order
    for mine, theirs in zip(*map(jax.tree.leaves, (after, want_after)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("method", ["smf", "pretraining"])
def test_a_mesh_does_what_one_device_does(method, shape, layout):
    got = train(method, "one memory", placement_on(shape, layout))

    assert_same(got, on_one_device(method, "one memory"), method)
