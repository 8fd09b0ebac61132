import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smf_jax.config import (
    CalibratedConfig,
    ComputeConfig,
    ConfigError,
    MemoryConfig,
    MeshConfig,
    ModelConfig,
    calibrated_memory,
)
from smf_jax.data.batches import Batch
from smf_jax.model.build import (
    abstract_model,
    add_memory,
    assemble,
    with_rows,
    without_rows,
)
from smf_jax.model.calibrated import CalibratedMemory, rows_of, unit
from smf_jax.model.transformer import Transformer
from smf_jax.sharding import make_layout
from smf_jax.train.calibrate import calibrate
from tests.reference import calibrated as reference
from tests.tiny import VOCAB, bits, call, fill, model_config, named

DIM, TOKENS, SEQ, ROWS = 12, 10, 16, 8
CONFIG = MemoryConfig(
    layers=(1,),
    num_keys=6,
    num_heads=2,
    top_k=3,
    key_dim=8,
    value_dim=DIM,
    placement="add",
    calibrated=CalibratedConfig(num_rows=None),
)
SLOTS = np.array([2, 7, 11, 30, 35], np.int32)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X, ROWS_WRITTEN = normal(0, 1, TOKENS, DIM), normal(1, len(SLOTS), DIM)


def make_layer(config):
    """Returns a layer with random parameters, of which the keys have length 1."""
    layer = CalibratedMemory(config, DIM, rngs=nnx.Rngs(0))
    for seed, name in enumerate(("mean", "projection", "keys"), 10):
        parameter = getattr(layer, name)
        parameter[...] = normal(seed, *parameter.shape)
    layer.keys[...] = unit(layer.keys[...])
    layer.gain[...] = jnp.asarray(1.7)
    return layer


def sparse(layer):
    """Returns the layer with rows for SLOTS alone, and its table."""
    config = CONFIG.with_rows(len(SLOTS))
    other = CalibratedMemory(config, DIM, rngs=nnx.Rngs(0))
    for name in ("mean", "projection", "keys", "gain"):
        getattr(other, name)[...] = getattr(layer, name)[...]
    other.slots[...] = other.slots[...].at[: len(SLOTS)].set(SLOTS)
    table = jnp.zeros((config.table_rows, DIM)).at[: len(SLOTS)].set(ROWS_WRITTEN)
    return other, table


def base_model():
    config = model_config(memory=None)
    return fill(lambda: Transformer(config, rngs=nnx.Rngs(0)))


def background(num=4):
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, VOCAB, (num, ROWS, SEQ)).astype(np.int32)
    positions = np.broadcast_to(np.arange(SEQ, dtype=np.int32), (ROWS, SEQ))
    ones, floats = np.ones((ROWS, SEQ), np.int32), np.ones((ROWS, SEQ), np.float32)
    return [Batch(t, t, floats, positions, ones, ones) for t in tokens]


def calibrated(seed=0):
    model = base_model()
    memory = calibrated_memory(model.config)
    memory = dataclasses.replace(memory, num_keys=6, top_k=3, num_heads=2, key_dim=8)
    model = add_memory(model, memory, seed=0)
    return model, calibrate(model, background(), seed)


def test_the_layer_is_that_of_the_formula():
    layer = make_layer(CONFIG)
    table = jnp.zeros((CONFIG.num_slots, DIM)).at[SLOTS].set(ROWS_WRITTEN)
    arrays = (layer.mean, layer.projection, layer.keys)
    want = reference.memory(
        np.asarray(X[0], float),
        *(np.asarray(array[...], float) for array in arrays),
        float(layer.gain[...]),
        dict(zip(SLOTS.tolist(), np.asarray(ROWS_WRITTEN, float), strict=True)),
        CONFIG.top_k,
        CONFIG.calibrated.temperature,
    )

    got, _ = call(layer, X, table)

    # float32 scores are divided by a temperature of 0.1 before they are exponents
    np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-5)


def test_a_table_of_written_rows_gives_the_bits_of_the_dense_one():
    layer = make_layer(CONFIG)
    dense = jnp.zeros((CONFIG.num_slots, DIM)).at[SLOTS].set(ROWS_WRITTEN)
    of_dense, reads = call(layer, X, dense)

    written, table = sparse(layer)
    of_sparse, _ = call(written, X, table)

    assert set(np.asarray(reads.slots).ravel()) & set(SLOTS.tolist())  # some are read
    np.testing.assert_array_equal(bits(of_sparse), bits(of_dense))


def test_slots_without_a_row_read_the_last_one():
    slots = jnp.array([[2, 3, 11, 0, 35]])

    rows = rows_of(jnp.array([*SLOTS, 36, 36]), slots)

    assert rows.tolist() == [[0, 6, 2, 6, 4]]


def test_a_calibrated_memory_that_is_empty_changes_no_bit():
    base, (model, _) = base_model(), calibrated()
    tokens = jnp.asarray(background()[0].tokens)

    want, _ = call(base, tokens)
    got, _ = call(model, tokens)

    np.testing.assert_array_equal(bits(got), bits(want))


def test_queries_of_the_background_are_white():
    model, _ = calibrated()
    (layer,) = model.config.memory.layers
    memory = model.blocks[layer].memory
    inputs = []
    for batch in background():
        stream = model.prefix(jnp.asarray(batch.tokens)).stream
        inputs.append(model.blocks[layer].feed_forward_norm(stream)[:, 1:])
    states = np.concatenate([each.reshape(-1, each.shape[-1]) for each in inputs])
    white = (states - np.asarray(memory.mean[...])) @ memory.projection[...]
    width = model.config.memory.key_dim
    white = np.asarray(white)

    of_head = np.cov(white[:, :width].T, bias=True)

    # float32 sums over 480 tokens, of components scaled up by their small variance
    np.testing.assert_allclose(of_head, np.eye(width), atol=2e-3)


def test_keys_have_length_1_and_all_of_them_are_used():
    model, reads = calibrated()
    (layer,) = model.config.memory.layers

    keys = np.asarray(model.blocks[layer].memory.keys[...])

    np.testing.assert_allclose(np.linalg.norm(keys, axis=-1), 1, rtol=1e-6)
    slots = np.concatenate(reads).ravel()
    assert set(slots // 6) == set(slots % 6) == set(range(6))


def test_calibration_is_the_same_for_the_same_seed_and_another_for_another():
    first, same, other = (named(calibrated(seed)[0]) for seed in (0, 0, 1))

    for name, of_first in first.items():
        np.testing.assert_array_equal(bits(of_first), bits(same[name]))
    keys = next(name for name in first if name.endswith("memory/keys"))
    assert (bits(first[keys]) != bits(other[keys])).any()


def test_fewer_tokens_than_keys_are_refused():
    model = add_memory(base_model(), calibrated_memory(base_model().config), seed=0)

    with pytest.raises(ConfigError, match="480 background tokens are fewer than"):
        calibrate(model, background(), seed=0)


def test_rows_are_added_where_their_slots_are_and_earlier_ones_are_kept():
    model, _ = calibrated()
    model = with_rows(model, np.array([5, 20]))
    model.values[0][...] = model.values[0][...].at[:2].set(ROWS_WRITTEN[:2, :1])

    wider = with_rows(model, np.array([7, 20, 1]))

    (layer,) = wider.config.memory.layers
    assert wider.blocks[layer].memory.slots[...][:5].tolist() == [1, 5, 7, 20, 36]
    rows = np.asarray(wider.values[0][...])
    written = np.asarray(model.values[0][...])
    np.testing.assert_array_equal(rows[[1, 3]], written[:2])
    assert not rows[[0, 2]].any()
    assert not rows[4:].any()


def test_rows_that_are_removed_leave_the_table_as_it_was_without_them():
    model, _ = calibrated()
    model = with_rows(model, np.array([5, 20]))
    model.values[0][...] = model.values[0][...].at[:2].set(ROWS_WRITTEN[:2, :1])
    want = named(model)

    got = named(without_rows(with_rows(model, np.array([7, 20, 1])), np.array([1, 7])))

    for name, array in want.items():
        np.testing.assert_array_equal(bits(got[name]), bits(array))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": (0, 1)}, "has one layer"),
        ({"placement": "replace"}, "is not for a calibrated memory"),
        ({"num_keys": 50_000}, "more than 2\\*\\*31 slots"),
    ],
)
def test_a_memory_that_cannot_be_calibrated_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize("changes", [{"num_rows": -1}, {"temperature": 0.0}])
def test_settings_of_calibration_are_checked(changes):
    with pytest.raises(ConfigError, match="must be"):
        CalibratedConfig(**changes)


def test_rows_that_are_no_vectors_of_the_stream_are_refused():
    with pytest.raises(ConfigError, match=r"must be model\.dim=64"):
        ModelConfig(dim=64, memory=CONFIG)


def test_a_memory_calibrated_on_a_mesh_is_that_of_one_device():
    want, want_reads = calibrated()
    layout = make_layout(MeshConfig(data=2, fsdp=2, model=2), ComputeConfig(), None)
    params = named(want)
    split = layout.device_put(params, layout.param_shardings(params))
    model = assemble(abstract_model(want.config, layout), split)

    reads = calibrate(model, background(), seed=0)

    assert all(map(np.array_equal, reads, want_reads))
    got = named(model)
    for name in ("mean", "projection", "keys", "gain"):
        name = f"blocks/{want.config.memory.layers[0]}/memory/{name}"
        # float32 sums in another order
        np.testing.assert_allclose(got[name], params[name], rtol=1e-3, atol=1e-4)
