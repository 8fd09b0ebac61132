import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smf_jax.config import ComputeConfig, RopeConfig, RopeScalingConfig
from smf_jax.model import generate as generation
from smf_jax.model.build import abstract_model
from smf_jax.model.generate import Sampling, keep_top_p
from smf_jax.sharding import MeshLayout
from tests.tiny import VOCAB, call, make_model, memory_config, model_config

MODELS = {
    "grouped heads, a memory": {},
    "stretched, untied, no memory": {
        "rope": RopeConfig(scaling=RopeScalingConfig(original_max_position=16)),
        "tie_embeddings": False,
        "memory": None,
    },
    "biases, norms, two added memories": {
        "num_kv_heads": 4,
        "qkv_bias": True,
        "qk_norm": True,
        "tie_embeddings": False,
        "memory": memory_config(layers=(0, 1), share_values=False, placement="add"),
    },
}
every_model = pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS.keys())
NEW, NO_END = 7, VOCAB + 1  # no token has this id
SEED = 1  # of models that do not repeat a single token
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
LENGTH = 5  # of the longest prompt


def left_padded(prompts):
    tokens = np.full((len(prompts), LENGTH), 7, np.int32)  # which no prompt has
    for row, prompt in enumerate(prompts):
        tokens[row, LENGTH - len(prompt) :] = prompt
    lengths = np.array([len(prompt) for prompt in prompts])
    is_prompt = np.arange(LENGTH) >= LENGTH - lengths[:, None]
    return jnp.asarray(tokens), jnp.asarray(is_prompt)


def continue_by_full_forwards(model, prompt, end):
    """Continues one prompt alone, with a forward pass of all of it for each token."""
    text, answer = list(prompt), []
    while len(answer) < NEW:
        # Later tokens do not change earlier ones: see test_transformer.py.
        row = np.pad(text, (0, LENGTH + NEW - len(text))).astype(np.int32)
        logits, _ = call(model, jnp.asarray(row)[None])
        token = int(logits[0, len(text) - 1].argmax())
        text.append(token)
        answer.append(token)
        if token == end:
            return answer + [end] * (NEW - len(answer))
    return answer


def generate(model, prompts, *ends, sampling=None):
    is_end = jnp.asarray([token in ends for token in range(VOCAB)])
    tokens, is_prompt = left_padded(prompts)
    parts = nnx.split(model)
    return _generate(*parts, tokens, is_prompt, is_end, sampling).tolist()


@functools.partial(jax.jit, static_argnums=0)
def _generate(graph, params, tokens, is_prompt, is_end, sampling):
    model = nnx.merge(graph, params)
    return generation.generate(model, tokens, is_prompt, NEW, is_end, sampling)


@every_model
def test_decoding_with_a_cache_is_decoding_without(changes):
    model = make_model(model_config(**changes), SEED)
    want = [continue_by_full_forwards(model, prompt, NO_END) for prompt in PROMPTS]
    assert len({token for answer in want for token in answer}) > 3

    assert generate(model, PROMPTS, NO_END) == want


def test_cached_logits_are_those_of_a_full_forward():
    changes = MODELS["biases, norms, two added memories"]
    model = make_model(model_config(**changes), SEED)
    text = jnp.asarray([[3, 1, 4, 1, 5, 9, 2, 0, 0, 0, 0, 0]])
    want = call(model, text)[0][:, 3:7]

    is_token, caches = jnp.ones((1, 7), bool), model.empty_caches(1, 7)
    got, start = [], 0
    for end in (4, 5, 6, 7):  # a prompt of four tokens, then one by one
        positions = jnp.arange(start, end)[None]
        logits, caches = _decode(
            *nnx.split(model), text[:, start:end], positions, is_token, caches
        )
        got.append(logits)
        start = end

    # float32 sums of a few dozen products, in another order
    np.testing.assert_allclose(jnp.stack(got, axis=1), want, rtol=0, atol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def _decode(graph, params, *args):
    return nnx.merge(graph, params).decode(*args)


def test_a_bfloat16_model_decodes():
    _, params = nnx.split(make_model(model_config(), SEED))
    layout = MeshLayout(compute=ComputeConfig(activations="bfloat16"))
    graph, _ = nnx.split(abstract_model(model_config(), layout))
    model = nnx.merge(graph, params)

    answers = generate(model, PROMPTS, NO_END)

    assert model.empty_caches(1, 2)[0].keys.dtype == jnp.bfloat16
    assert {len(answer) for answer in answers} == {NEW}


def test_after_its_end_token_a_row_holds_only_end_tokens():
    model = make_model(model_config(), SEED)
    endless = [continue_by_full_forwards(model, p, NO_END) for p in PROMPTS]
    end = next(a[i] for a in endless for i in (1, 2, 3) if a[i] != a[i + 1])
    want = [continue_by_full_forwards(model, prompt, end) for prompt in PROMPTS]
    assert want != endless

    assert generate(model, PROMPTS, end) == want


def test_any_of_several_end_tokens_ends_a_row():
    model = make_model(model_config(), SEED)
    first, second, third = generate(model, PROMPTS, NO_END)
    ends = (first[1], second[3])
    want = [continue_until(answer, ends) for answer in (first, second, third)]

    assert generate(model, PROMPTS, *ends) == want


def continue_until(answer, ends):
    """Returns an endless answer up to its first end, which is then repeated."""
    index = next((n for n, token in enumerate(answer) if token in ends), NEW - 1)
    return answer[:index] + [answer[index]] * (NEW - index)


def sampled(model, prompts, temperature=1.0, top_p=1.0, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(prompts))
    return generate(model, prompts, NO_END, sampling=Sampling(keys, temperature, top_p))


def test_a_cold_sample_and_the_smallest_top_p_are_greedy():
    model = make_model(model_config(), SEED)
    greedy = generate(model, PROMPTS, NO_END)

    assert sampled(model, PROMPTS, temperature=1e-3) == greedy
    assert sampled(model, PROMPTS, temperature=5.0, top_p=1e-6) == greedy


def test_a_sample_depends_on_its_key_alone_and_not_on_its_batch():
    model = make_model(model_config(), SEED)
    keys = jax.random.split(jax.random.key(0), 3)
    together = generate(
        model, PROMPTS, NO_END, sampling=Sampling(keys, jnp.float32(2), jnp.float32(1))
    )
    alone = [
        generate(
            model,
            [prompt] * 3,
            NO_END,
            sampling=Sampling(
                keys[jnp.asarray([n] * 3)], jnp.float32(2), jnp.float32(1)
            ),
        )
        for n, prompt in enumerate(PROMPTS)
    ]

    assert [rows[0] for rows in alone] == together
    assert all(rows[0] == rows[1] for rows in alone)
    assert sampled(model, PROMPTS, 2.0, seed=1) != sampled(model, PROMPTS, 2.0, seed=2)


def test_tokens_are_sampled_as_often_as_they_are_probable():
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]]))
    kept = keep_top_p(logits, jnp.float32(0.8))

    np.testing.assert_array_equal(jnp.isfinite(kept), [[True, True, False, False]])
    keys = jax.random.split(jax.random.key(0), 4000)
    sampling = Sampling(keys, jnp.float32(1.0), jnp.float32(0.8))
    tokens = generation._choose(jnp.repeat(logits, 4000, axis=0), 0, sampling)
    # 5 / 8 of what remains; 4 standard errors of 4,000 draws
    assert abs(float((tokens == 0).mean()) - 0.625) < 0.031
    assert int(tokens.max()) == 1
