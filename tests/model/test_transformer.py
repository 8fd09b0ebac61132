import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smf_jax.config import ComputeConfig, ConfigError, RopeConfig
from smf_jax.model import build
from smf_jax.model.build import add_memory
from smf_jax.model.transformer import Transformer
from smf_jax.sharding import ONE_DEVICE, MeshLayout
from tests.tiny import (
    NUM_SLOTS,
    VALUE_DIM,
    VOCAB,
    bits,
    call,
    fill,
    make_model,
    memory_config,
    model_config,
    named,
    with_params,
)

BATCH, SEQ = 2, 9
BFLOAT16 = MeshLayout(compute=ComputeConfig(activations="bfloat16"))
TWO_TABLES = memory_config(layers=(0, 1), share_values=False)
MEMORIES = {
    "replace": memory_config(),
    "add": memory_config(placement="add"),
    "two tables": TWO_TABLES,
    "none": None,
}


def tokens(seed, batch=BATCH, seq=SEQ):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, VOCAB, (batch, seq)), jnp.int32)


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES.keys())
def test_no_token_sees_a_later_one(memory):
    model, text = make_model(model_config(memory=memory)), tokens(0)
    want, want_reads = call(model, text)

    for position in range(SEQ):
        changed = text.at[:, position].set((text[:, position] + 1) % VOCAB)
        got, got_reads = call(model, changed)

        same = (bits(got) == bits(want)).all(axis=(0, 2)).tolist()
        assert same == [True] * position + [False] * (SEQ - position)
        for before, after in zip(
            jax.tree.leaves(want_reads), jax.tree.leaves(got_reads), strict=True
        ):
            np.testing.assert_array_equal(after[:, :position], before[:, :position])


def packed(*texts, seq=SEQ):
    """Returns one row of texts, each with positions and a segment of its own."""
    lengths = [text.shape[1] for text in texts]
    padding = (0, seq - sum(lengths))
    positions = np.concatenate([np.arange(n) for n in lengths])
    segments = np.repeat(np.arange(1, len(texts) + 1), lengths)
    return (
        jnp.pad(jnp.concatenate(texts, axis=1), ((0, 0), padding)),
        jnp.asarray(np.pad(positions, padding)[None]),
        jnp.asarray(np.pad(segments, padding)[None]),
    )


def test_a_packed_text_reads_and_says_what_it_does_alone():
    model = make_model(model_config())
    first, second = tokens(0, batch=1, seq=3), tokens(1, batch=1, seq=4)
    want, (want_reads,) = call(model, *packed(second))

    got, (got_reads,) = call(model, *packed(first, second))

    # At another position in the row, float32 sums are taken in another order.
    np.testing.assert_allclose(got[:, 3:7], want[:, :4], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(got_reads.slots[:, 3:7], want_reads.slots[:, :4])


def test_packed_texts_do_not_see_each_other():
    model = make_model(model_config())
    second = tokens(1, batch=1, seq=4)
    want, _ = call(model, *packed(tokens(0, batch=1, seq=3), second))

    got, _ = call(model, *packed(tokens(2, batch=1, seq=3), second))

    assert (bits(got[:, :3]) != bits(want[:, :3])).any()
    np.testing.assert_array_equal(bits(got[:, 3:7]), bits(want[:, 3:7]))


def test_no_text_sees_padding():
    model, text = make_model(model_config()), tokens(0, batch=1, seq=7)
    row, positions, segments = packed(text)
    want, _ = call(model, row, positions, segments)

    row = row.at[:, 7:].set(jnp.array([5, 6]))
    got, _ = call(model, row, positions, segments)

    np.testing.assert_array_equal(bits(got[:, :7]), bits(want[:, :7]))


def test_a_row_is_one_text_by_default():
    model, text = make_model(model_config()), tokens(0)
    positions = jnp.broadcast_to(jnp.arange(SEQ), (BATCH, SEQ))
    want, _ = call(model, text, positions, jnp.ones((BATCH, SEQ), int))

    got, _ = call(model, text)

    # Another program for the same sums.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_logits_of_bfloat16_activations_are_not_rounded_to_it(tie_embeddings):
    config = model_config(tie_embeddings=tie_embeddings)
    model = fill(lambda: Transformer(config, BFLOAT16, rngs=nnx.Rngs(0)))

    logits, _ = call(model, tokens(0))

    assert (logits.shape, logits.dtype) == ((BATCH, SEQ, VOCAB), jnp.float32)
    rounded = logits.astype(jnp.bfloat16).astype(jnp.float32)
    assert (rounded != logits).mean() > 0.9


def test_gradients_of_bfloat16_activations_are_summed_in_float32():
    memory = memory_config(placement="add")
    config = model_config(qkv_bias=True, memory=memory)
    # One token more often than bfloat16 can count.
    text = jnp.full((8, 512), 3, jnp.int32).at[:, ::2].set(tokens(1, 8, 256))
    rng = np.random.default_rng(2)
    # Not around 0, so that sums grow with their terms.
    cotangent = jnp.asarray(1 + 0.1 * rng.normal(size=(8, 512, VOCAB)), jnp.float32)

    model = build.make_model(config, seed=0)
    model.blocks[1].memory_scale[...] = 0.5
    _, params = nnx.split(model)

    def gradients(layout):
        graph, _ = nnx.split(build.abstract_model(config, layout))

        @jax.jit
        @jax.grad
        def gradient(params, text, cotangent):
            return (nnx.merge(graph, params)(text)[0] * cotangent).sum()

        gradients = named(nnx.merge(graph, gradient(params, text, cotangent)))
        return {name: np.asarray(leaf) for name, leaf in gradients.items()}

    got, want = gradients(BFLOAT16), gradients(ONE_DEVICE)

    for name, of_float32 in want.items():
        off = np.linalg.norm(got[name] - of_float32) / np.linalg.norm(of_float32)
        # Rounded on the way are the terms alone, in each layer by 1 part of 256: by up
        # to 0.11 in all. Sums in bfloat16 are off by 0.18 and more.
        assert off < 0.13, name


@pytest.mark.parametrize("token", [VOCAB, VOCAB + 7, -1, -VOCAB])
def test_a_token_outside_the_vocabulary_has_no_logits(token):
    text = tokens(0).at[1, 4].set(token)

    logits, _ = call(make_model(model_config(memory=None)), text)

    assert np.isnan(logits[1, 4]).all()
    assert not np.isnan(logits[0]).any()


def test_equal_tables_say_what_a_shared_one_does():
    shared = make_model(model_config(memory=memory_config(layers=(0, 1))))
    params = named(shared)
    assert "values/1" not in params
    params["values/1"] = params["values/0"]
    want, _ = call(shared, tokens(0))

    own = make_model(model_config(memory=TWO_TABLES), seed=1)
    got, _ = call(with_params(own, params), tokens(0))

    np.testing.assert_array_equal(got, want)


def test_each_layer_reads_its_own_table_when_they_are_not_shared():
    model = make_model(model_config(memory=TWO_TABLES))
    want, want_reads = call(model, tokens(0))

    def with_table(number):
        table = {f"values/{number}": jnp.ones((NUM_SLOTS, VALUE_DIM))}
        return call(with_params(model, table), tokens(0))

    logits, reads = with_table(0)
    assert (bits(logits) != bits(want)).any()
    # The second layer's reads depend on the first layer's table, not on its own.
    assert (bits(reads[1].weights) != bits(want_reads[1].weights)).any()

    logits, reads = with_table(1)
    assert (bits(logits) != bits(want)).any()
    np.testing.assert_array_equal(bits(reads[1].weights), bits(want_reads[1].weights))


def test_reads_come_one_for_each_memory_layer_lowest_first():
    model = make_model(model_config(memory=TWO_TABLES))
    _, want = call(model, tokens(0))

    twisted = {"blocks/1/memory/keys": -named(model)["blocks/1/memory/keys"]}
    _, got = call(with_params(model, twisted), tokens(0))

    assert len(want) == 2
    np.testing.assert_array_equal(got[0].slots, want[0].slots)
    assert (np.asarray(got[1].slots) != np.asarray(want[1].slots)).any()


@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_an_added_memory_changes_no_bit_until_its_scale_is_trained(layers):
    model = make_model(model_config(memory=None))
    memory = memory_config(placement="add", layers=layers, relevance_gate=True)
    want, _ = call(model, tokens(0))

    added = add_memory(model, memory, seed=0)
    got, reads = call(added, tokens(0))
    trained = {f"blocks/{layer}/memory_scale": jnp.ones(()) for layer in layers}
    moved, _ = call(with_params(added, trained), tokens(0))

    np.testing.assert_array_equal(bits(got), bits(want))
    assert len(reads) == len(layers)
    assert (bits(moved) != bits(want)).any()


@pytest.mark.parametrize("placement", ["add", "replace"])
def test_a_retrofitted_model_is_initialized_like_one_with_a_memory(placement):
    model = make_model(model_config(memory=None))
    memory = memory_config(placement=placement, layers=(0, 1), share_values=False)

    got = add_memory(model, memory, seed=3)

    fresh = build.make_model(model_config(memory=memory), seed=3)
    assert nnx.graphdef(got) == nnx.graphdef(fresh)
    old, new, initial = named(model), named(got), named(fresh)
    assert new.keys() == initial.keys()
    for name, array in new.items():
        if name in old:
            np.testing.assert_array_equal(array, old[name])
        else:  # in another program, the same draws may round otherwise
            np.testing.assert_allclose(array, initial[name], rtol=1e-6)
    lost = {name for name in old if "feed_forward/" in name}
    assert old.keys() - new.keys() == (lost if placement == "replace" else set())


@pytest.mark.parametrize(
    ("old", "layers", "match"),
    [(memory_config(), (1,), "already"), (None, (2,), r"memory\.layers")],
    ids=["a second memory", "beyond the last layer"],
)
def test_a_memory_that_does_not_fit_the_model_is_refused(old, layers, match):
    model = make_model(model_config(memory=old))

    with pytest.raises(ConfigError, match=match):
        add_memory(model, memory_config(layers=layers), seed=0)


@pytest.mark.parametrize("skip_layers", [(), (0,)])
def test_a_layer_without_rotary_positions_does_not_know_its_position(skip_layers):
    rope = RopeConfig(skip_layers=skip_layers)
    model = make_model(model_config(memory=None, num_layers=1, rope=rope))
    near = jnp.broadcast_to(jnp.arange(SEQ), (BATCH, SEQ))

    logits = [call(model, tokens(0), positions)[0] for positions in (near, near**2)]

    assert (bits(logits[0]) == bits(logits[1])).all() == (0 in skip_layers)


def last_block(memory_layer: int, scan: bool = False, num_layers: int = 2):
    memory = memory_config(layers=(memory_layer,))
    config = model_config(memory=memory, num_layers=num_layers)
    layout = MeshLayout(compute=ComputeConfig(scan_layers=scan))
    return fill(lambda: Transformer(config, layout, rngs=nnx.Rngs(0)))


LAST_BLOCKS = {
    "feed-forward": last_block(0),
    "memory": last_block(1),
    "in a scan": last_block(0, scan=True, num_layers=4),
}


@functools.partial(jax.jit, static_argnums=0)
def hidden(graph, params, text, positions=None):
    return nnx.merge(graph, params).hidden(*text, output_positions=positions)


@pytest.mark.parametrize("model", LAST_BLOCKS.values(), ids=LAST_BLOCKS.keys())
def test_selected_positions_alone_say_what_they_say_among_all(model):
    text = packed(tokens(0, 1, 3), tokens(1, 1, 5))
    positions = jnp.array([[2, 4, 7]])
    want, want_reads = hidden(*nnx.split(model), text)

    got, got_reads = hidden(*nnx.split(model), text, positions)

    # Products of fewer rows may be summed in another order.
    np.testing.assert_allclose(got, want[:, positions[0]], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(got_reads[0].slots, want_reads[0].slots)


def test_the_last_feed_forward_is_computed_for_selected_positions_alone():
    def shapes(model):
        positions = jnp.array([[8], [8]])
        program = hidden.trace(*nnx.split(model), (tokens(0),), positions)
        text = str(program.jaxpr)
        return text.count("f32[2,9,10]"), text.count("f32[2,1,10]")

    assert shapes(LAST_BLOCKS["feed-forward"])[0] == 0
    assert shapes(LAST_BLOCKS["feed-forward"])[1] > 0
    assert shapes(LAST_BLOCKS["memory"])[0] > 0


def test_a_position_beyond_the_row_is_nan_and_in_padding_it_is_ignored():
    config = model_config(memory=None)
    model, tokens = make_model(config), jnp.ones((1, 4), jnp.int32)
    positions, segments = jnp.array([[0, 1, 9, 2]]), jnp.array([[1, 1, 0, 0]])

    wrong, _ = call(model, tokens, positions)
    right, _ = call(model, tokens, positions, segments)

    assert np.isnan(wrong[0, 2]).all()
    assert np.isfinite(right).all()
