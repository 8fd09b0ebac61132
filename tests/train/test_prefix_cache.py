"""Cached prefixes change no step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from smf_jax.config import ComputeConfig, ConfigError, MeshConfig, OptimConfig
from smf_jax.data.fact_batches import fact_batches, stack_facts
from smf_jax.model.transformer import Transformer
from smf_jax.optim.methods import make_method
from smf_jax.sharding import ONE_DEVICE, MeshLayout, make_layout
from smf_jax.slots.document_frequency import Background
from smf_jax.train import prefix_cache
from smf_jax.train.state import background_shardings, init_state
from smf_jax.train.step import make_step
from tests.tiny import VOCAB, fill, make_batch, memory_config, model_config, moved_rows

FACTS, AT_ONCE, STEPS = 7, 3, 4
SMF = OptimConfig(method="smf", optimizer="sgd", learning_rate=2.0, top_t=8)
MODELS = {
    "one memory": model_config(),
    "lowest of two, one table": model_config(
        num_layers=4, memory=memory_config(layers=(2, 3))
    ),
    "two tables": model_config(memory=memory_config(layers=(0, 1), share_values=False)),
    "in the first layer": model_config(memory=memory_config(layers=(0,))),
    "beside a feed-forward": model_config(
        memory=memory_config(placement="add", relevance_gate=True, key_norm=True)
    ),
}


def facts():
    """Returns facts of one, two or three texts, of at most eight tokens."""
    rng = np.random.default_rng(0)

    def row(place):
        ids = rng.integers(1, VOCAB, rng.integers(3, 9), np.int32)
        weights = np.ones(len(ids) - 1, np.float32)
        records = np.full(len(ids) - 1, place, np.int32)
        texts = {"tokens": ids[:-1], "targets": ids[1:]}
        return texts | {"weights": weights, "records": records}

    return stack_facts(
        [[row(place) for _ in range(1 + place % 3)] for place in range(FACTS)],
        seq_len=24,
    )


def model_of(config, layout: MeshLayout = ONE_DEVICE):
    return fill(lambda: Transformer(config, layout, rngs=nnx.Rngs(0)))


def quiet():
    return Console(quiet=True)


@pytest.mark.parametrize(
    ("config", "compute"),
    [
        *((config, {}) for config in MODELS.values()),
        (MODELS["lowest of two, one table"], {"remat": True, "scan_layers": True}),
    ],
    ids=[*MODELS, "remat and scan"],
)
def test_what_follows_a_prefix_is_what_follows_the_text(config, compute):
    graph, params = nnx.split(
        model_of(config, MeshLayout(compute=ComputeConfig(**compute)))
    )
    batch = make_batch()
    text = tuple(map(jnp.asarray, (batch.tokens, batch.positions, batch.segments)))

    @jax.jit
    def both(params):
        model = nnx.merge(graph, params)
        known = model.prefix(*text)
        return model.hidden(*text), model.hidden(*text, prefix=known)

    (want, want_reads), (got, reads) = both(params)

    for read, want_read in zip(reads, want_reads, strict=True):
        np.testing.assert_array_equal(read.slots, want_read.slots)
    # float32, in two programs
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def train(config, known: bool, layout=ONE_DEVICE, parts=1):
    """Returns the tables before and after some steps, and their losses."""
    method = make_method(SMF, STEPS)
    graph, state, frozen = init_state(model_of(config, layout), method)
    before = jax.tree.map(np.asarray, jax.tree.leaves(state.trainable))
    rows = facts()
    if known:
        params = (state.trainable, frozen)
        rows = prefix_cache.with_prefixes(rows, graph, params, AT_ONCE, quiet())
    else:  # nor is it told which targets have a loss
        rows = [fact._replace(loss_positions=None) for fact in rows]
    shape = (config.memory.num_tables, config.memory.num_slots)
    frequency = np.random.default_rng(1).integers(0, 9, shape, np.int32)
    background = layout.device_put(
        Background(frequency, np.int32(9)), background_shardings(layout)
    )
    step = make_step(graph, config.memory, method, parts, layout=layout)
    batches, losses = fact_batches(rows, 4, seed=0), []
    for _ in range(STEPS):
        batch = layout.shard_batch(next(batches), parts)
        state, metrics = step(state, frozen, background, batch)
        losses.append(float(metrics["loss"]))
    return before, jax.tree.map(np.asarray, jax.tree.leaves(state.trainable)), losses


@functools.cache
def computed_anew(model: str):
    return train(MODELS[model], known=False)


def assert_same(got, want):
    assert got[2] == pytest.approx(want[2], rel=1e-5)
    for old, mine, theirs in zip(*got[:2], want[1], strict=True):
        assert len(moved_rows(old, theirs)) > 0
        assert moved_rows(old, mine) == moved_rows(old, theirs)
        # Rates of 2 and float32 sums in another order
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "parts"),
    [*((model, 1) for model in MODELS), ("two tables", 2)],
)
def test_steps_on_prefixes_are_steps_on_texts(model, parts):
    got = train(MODELS[model], known=True, parts=parts)

    assert_same(got, computed_anew(model))


@pytest.mark.parametrize("layout", ["columns", "slots", "everywhere"])
def test_steps_on_prefixes_are_the_same_on_a_mesh(layout):
    mesh = MeshConfig(data=2, fsdp=2, model=2, values=layout)
    # Columns and slots of two devices and of eight.
    sizes = {"layers": (2, 3), "num_keys": 8, "value_dim": 8}
    config = model_config(
        dim=16, vocab_size=12, num_layers=4, memory=memory_config(**sizes)
    )
    layout = make_layout(mesh, ComputeConfig(), config.memory)

    assert_same(train(config, known=True, layout=layout), train(config, known=False))


def test_bfloat16_changes_little_with_a_prefix_as_without():
    config = MODELS["lowest of two, one table"]
    layout = MeshLayout(compute=ComputeConfig(activations="bfloat16"))

    _, _, want = train(config, known=False, layout=layout)
    _, _, got = train(config, known=True, layout=layout)

    # 8 bits of a bfloat16 make an error of about 2**-8; other slots may be read.
    assert got == pytest.approx(want, rel=2**-5)


def test_each_text_gets_the_prefix_that_it_has_alone():
    graph, params = nnx.split(model_of(MODELS["one memory"]))
    rows = facts()

    known = prefix_cache.with_prefixes(rows, graph, (params,), AT_ONCE, quiet())

    assert len(known) == FACTS
    for fact, want in zip(known, rows, strict=True):
        alone = nnx.merge(graph, params).prefix(
            *map(jnp.asarray, (want.tokens, want.positions, want.segments))
        )
        np.testing.assert_array_equal(fact.prefix.reads.slots, alone.reads.slots)
        np.testing.assert_allclose(fact.prefix.stream, alone.stream, atol=1e-5)
        for mine, theirs in zip(
            *map(jax.tree.leaves, (fact._replace(prefix=None), want)), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)


def test_more_than_half_of_a_host_is_refused(monkeypatch):
    config = model_config(dim=16, num_heads=4, head_dim=4)
    rows = facts()
    # 16 floats, and a slot and a weight for 2 heads of 3 reads, of each token
    needs = FACTS * rows[0].tokens.size * (16 * 4 + 2 * 3 * 8)

    def host(size):
        monkeypatch.setattr(
            prefix_cache.os, "sysconf", lambda name: size if "PHYS" in name else 1
        )

    host(2 * needs)
    assert prefix_cache.require_room(rows, config, ONE_DEVICE) == needs / 2**30

    host(2 * needs - 1)
    with pytest.raises(ConfigError, match=r"reuse_prefix=True would cache .* 7 facts"):
        prefix_cache.require_room(rows, config, ONE_DEVICE)
