"""A real model gives the numbers, tokens and texts that `transformers` gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smf_jax import hf
from smf_jax.data.tokenizer import encode_prompt, encode_with_controls
from smf_jax.model.generate import generate
from tests import tiny

PROMPT, NEW = 16, 32
# Rounding of float32 through 30 layers: transformers itself is 1.7e-6 of the largest
# logit off its logits in float64, and we are 2.9e-6 off these.
TOLERANCE = 5e-6
TEXTS = [
    "The capital of France is",
    "In 1995, 12345 people paid $6.78 (or 9%) for it.",
    "  two  spaces\n\n\ttabs \r\n",
    "é ü ñ 東京 שלום 🦊 naïve e\u0301",
    "I'll don't WE'RE it's",
    "<|im_start|>user\nhi<|im_end|>\n",
    "def f(x):\n    return x**2  # ok",
    " ",
]
PARIS = "Paris is a city on the river Seine. "


@pytest.fixture(scope="module")
def tokens(tokenizer):
    """Returns rows of one length, of a text and of a chat."""
    text = encode_prompt(tokenizer, " ".join([*TEXTS[:2], PARIS * 4]))
    chat = encode_with_controls(tokenizer, TEXTS[5] * 9)
    return np.array([row[: PROMPT + NEW] for row in (text, chat)], np.int32)


@pytest.fixture(scope="module")
def want(torch_model, tokens):
    import torch

    with torch.no_grad():
        return torch_model(torch.from_numpy(tokens).long()).logits.numpy()


def logits_of(model, tokens):
    return np.asarray(tiny.call(model, tokens)[0])


def test_logits_are_those_of_transformers(model, tokens, want):
    got = logits_of(model, tokens)

    assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()
    np.testing.assert_array_equal(got.argmax(-1), want.argmax(-1))


def test_transformers_reads_the_same_bits_from_an_export(
    model, tokenizer, opened, torch_model, tmp_path
):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config, carried = hf.read_config_json(opened), hf.carried_files(opened)
    hf.export_model(model, tokenizer, tmp_path, config=config, carried=carried)

    exported = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tensors = exported.state_dict()
    for name, tensor in torch_model.state_dict().items():
        assert torch.equal(tensors[name], tensor)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert [read(text).input_ids for text in TEXTS] == [
        encode_with_controls(tokenizer, text) for text in TEXTS
    ]


def test_greedy_tokens_are_those_of_transformers_with_a_cache_and_without(
    model, torch_model, tokens
):
    import torch

    prompts = tokens[:, :PROMPT]
    options = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None}
    ids = torch.from_numpy(prompts).long()
    mask = torch.ones_like(ids)
    made = torch_model.generate(ids, attention_mask=mask, pad_token_id=0, **options)
    want = made.numpy().astype(np.int32)
    graph, params = nnx.split(model)

    @jax.jit
    def extend(params):
        model, no_end = (
            nnx.merge(graph, params),
            jnp.zeros(len(params["embedding"]), bool),
        )
        is_prompt = jnp.ones(prompts.shape, bool)
        return generate(model, jnp.asarray(prompts), is_prompt, NEW, no_end)

    np.testing.assert_array_equal(extend(params), want[:, PROMPT:])
    best = logits_of(model, want).argmax(-1)
    np.testing.assert_array_equal(best[:, PROMPT - 1 : -1], want[:, PROMPT:])


def test_the_capital_of_france_is_paris(model, tokenizer, tokens):
    best = logits_of(model, tokens).argmax(-1)

    prompt = encode_prompt(tokenizer, TEXTS[0])
    assert tokens[0, : len(prompt)].tolist() == prompt
    assert tokenizer.rules.decode([best[0, len(prompt) - 1]]) == " Paris"


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(tokenizer, torch_tokenizer, text):
    got = [*tokenizer.bos, *encode_with_controls(tokenizer, text)]

    assert got == torch_tokenizer(text).input_ids
    assert tokenizer.rules.decode(got, False) == torch_tokenizer.decode(got)


def test_a_chat_is_written_as_by_transformers(tokenizer, torch_tokenizer):
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "who are you?"},
    ]
    write = torch_tokenizer.apply_chat_template

    got = tokenizer.template.render([("hi", "hello")], "who are you?")

    assert got == write(messages, tokenize=False, add_generation_prompt=True)


def test_each_digit_of_a_number_is_a_token_in_every_script(tokenizer):
    """As in the model's own tokenizer.json; `transformers` does not read `pre`."""
    ids = encode_prompt(tokenizer, "x 12 ٣٤")

    words = tokenizer.rules.pre_tokenizer.pre_tokenize_str("x 12 ٣٤")
    assert [text for text, _ in words] == ["x", "Ġ", "1", "2", "Ġ", "Ù£", "Ù¤"]
    assert tokenizer.rules.decode(ids) == "x 12 ٣٤"
