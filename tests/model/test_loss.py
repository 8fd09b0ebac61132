import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smf_jax.config import LoraConfig
from smf_jax.model import loss
from smf_jax.model.lora import LoRAParam, add_lora
from tests import tiny

BATCH = jax.tree.map(jnp.asarray, tiny.make_batch())  # 4 x 9 tokens


def with_lora():
    model = MODELS["untied"]()
    add_lora(model, LoraConfig(rank=2, targets="head"), rngs=nnx.Rngs(0))
    factors = nnx.state(model, LoRAParam)  # `up` is 0, and `down` had no gradient
    nnx.update(model, jax.tree.map(lambda leaf: leaf + 0.3, factors))
    return model


MODELS = {
    "tied": lambda: tiny.make_model(tiny.model_config()),
    "untied": lambda: tiny.make_model(tiny.model_config(tie_embeddings=False)),
    "lora": with_lora,
}


def use_chunks(monkeypatch, count):
    monkeypatch.setattr(loss, "MIN_TOKENS", 36 // count)
    monkeypatch.setitem(loss.LOGITS_PER_CHUNK, "cpu", -(-36 * 11 // count))


def value_and_gradients(model):
    graph, params = nnx.split(model)

    def value(params):
        model = nnx.merge(graph, params)
        hidden, _ = model.hidden(BATCH.tokens, BATCH.positions, BATCH.segments)
        return loss.sum_losses(model, hidden, BATCH.targets, BATCH.weights) / 7

    return jax.jit(jax.value_and_grad(value))(params)


def log_softmax_loss(model):
    """Returns the loss from all logits, in float64 on the host."""
    logits, _ = tiny.call(model, BATCH.tokens, BATCH.positions, BATCH.segments)
    logits = np.asarray(logits, np.float64)
    of_target = np.take_along_axis(logits, np.asarray(BATCH.targets)[..., None], -1)
    losses = np.log(np.exp(logits).sum(-1)) - of_target[..., 0]
    return (losses * np.asarray(BATCH.weights)).sum() / 7


# The last chunk is short or not.
@pytest.mark.parametrize(("kind", "chunks"), [("tied", 9), ("untied", 5), ("lora", 5)])
def test_chunks_change_neither_the_loss_nor_its_gradient(kind, chunks, monkeypatch):
    model = MODELS[kind]()
    want = value_and_gradients(model)
    use_chunks(monkeypatch, chunks)

    got = value_and_gradients(model)

    np.testing.assert_allclose(got[0], log_softmax_loss(model), rtol=1e-6)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # float32 sums of 36 tokens and 11 words, in another order
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
        assert one.dtype == other.dtype


def test_a_value_without_a_gradient_is_the_same(monkeypatch):
    use_chunks(monkeypatch, 5)
    model = MODELS["tied"]()
    graph, params = nnx.split(model)

    @jax.jit
    def value(params):
        model = nnx.merge(graph, params)
        hidden, _ = model.hidden(BATCH.tokens, BATCH.positions, BATCH.segments)
        return loss.sum_losses(model, hidden, BATCH.targets, BATCH.weights)

    got = value(params)

    np.testing.assert_allclose(got / 7, log_softmax_loss(model), rtol=1e-6)


def test_chunks_hold_no_logits_of_all_tokens_and_no_gradient_of_a_frozen_head(
    monkeypatch,
):
    use_chunks(monkeypatch, 9)
    graph, params = nnx.split(MODELS["untied"]())

    def value(hidden, params):
        model = nnx.merge(graph, params)
        return loss.sum_losses(model, hidden, BATCH.targets, BATCH.weights)

    def computed(argnums):
        """Returns the shapes that a gradient's program computes."""
        gradient = jax.jit(jax.value_and_grad(value, argnums))
        lowered = gradient.lower(jnp.ones((4, 9, 12)), params)
        text = lowered.compile(tiny.AS_FOR_USERS).as_text()
        known = "parameter|get-tuple-element|bitcast|copy"
        shapes = re.findall(rf"= \w+\[([\d,]+)\]\S* (?!{known})", text)
        return {tuple(map(int, shape.split(","))) for shape in shapes}

    def has_logits(shapes):
        return any(11 in shape and np.prod(shape) >= 36 * 11 for shape in shapes)

    of_head = {(12, 11), (11, 12)}
    frozen = computed(0)
    assert not has_logits(frozen)
    assert not frozen & of_head
    assert computed((0, 1)) & of_head
    jax.clear_caches()
    monkeypatch.setitem(loss.LOGITS_PER_CHUNK, "cpu", 2**22)
    assert has_logits(computed(0))
