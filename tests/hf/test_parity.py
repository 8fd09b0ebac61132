"""Models of every family give the logits and texts that `transformers` gives."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smf_jax import hf
from smf_jax.model.generate import generate_greedily
from tests import torch_models
from tests.tiny import bits, named

torch_models.require_torch()

import torch  # noqa: E402
import transformers  # noqa: E402

VOCAB, NEW = 97, 32
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# Llama is also the family of SmolLM, SmolLM2 and TinyLlama.
CASES = {
    "llama 2, untied": ("Llama", {"tie_word_embeddings": False}),
    "llama 2, multi-head": ("Llama", {"num_key_value_heads": 4}),
    "llama 3.1": ("Llama", {"rope_parameters": LLAMA3}),
    "llama, wide heads": ("Llama", {"head_dim": 20}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 12}),
    "qwen 2.5": ("Qwen2", {}),
    "qwen 2.5, untied, multi-head": (
        "Qwen2",
        {"tie_word_embeddings": False, "num_key_value_heads": 4},
    ),
    "qwen 3": ("Qwen3", {"head_dim": 16}),
    "qwen 3, untied": ("Qwen3", {"head_dim": 20, "tie_word_embeddings": False}),
    "smollm 3": ("SmolLM3", {}),
}
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (3, 40), np.int32)
# float32 rounding through four layers comes to about 1e-6 of logits near 1.
TOLERANCE = 2e-5


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(params=CASES.values(), ids=CASES)
def theirs(request):
    return make(*request.param)


def make(family, changes, **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL | changes)
    kind = getattr(transformers, f"{family}ForCausalLM")
    return kind(config).eval()


@torch.no_grad()
def logits_of(model) -> np.ndarray:
    return model(torch.from_numpy(TOKENS).long()).logits.float().numpy()


def our_logits(model) -> np.ndarray:
    graph, params = nnx.split(model)
    return np.asarray(
        jax.jit(lambda p: nnx.merge(graph, p)(jnp.asarray(TOKENS))[0])(params)
    )


def require_same_logits(got, want):
    assert np.abs(got - want).max() <= TOLERANCE
    np.testing.assert_array_equal(got.argmax(-1), want.argmax(-1))


def test_logits_are_those_of_transformers(theirs, tmp_path):
    torch_models.save(theirs, tmp_path)

    require_same_logits(our_logits(hf.import_model(tmp_path)), logits_of(theirs))


def test_greedy_texts_are_those_of_transformers(theirs, tmp_path):
    torch_models.save(theirs, tmp_path)
    model = hf.import_model(tmp_path)
    prompts = TOKENS[:, :8]
    nothing = VOCAB + 1  # no token has this id: nothing ends a text

    with torch.no_grad():
        asked = torch.from_numpy(prompts).long()
        options = transformers.GenerationConfig(
            max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        texts = [
            theirs.generate(
                asked,
                attention_mask=torch.ones_like(asked),
                generation_config=options,
                use_cache=use_cache,
            )[:, 8:].numpy()
            for use_cache in (True, False)
        ]
    is_prompt = jnp.ones(prompts.shape, bool)
    cached = generate_greedily(model, jnp.asarray(prompts), is_prompt, NEW, nothing)
    graph, params = nnx.split(model)
    row = jax.jit(lambda params, row: nnx.merge(graph, params)(row)[0].argmax(-1))
    whole = np.zeros((3, 8 + NEW), np.int32)
    whole[:, :8] = prompts
    for place in range(8, 8 + NEW):
        whole[:, place] = row(params, whole)[:, place - 1]

    for text in (*texts, np.asarray(cached)):
        np.testing.assert_array_equal(text, whole[:, 8:])


@pytest.mark.parametrize("case", ["llama 2, untied", "qwen 3"])
def test_a_model_in_several_files_is_read_whole(case, tmp_path):
    theirs = make(*CASES[case])
    torch_models.save(theirs, tmp_path, max_shard_size="50KB")

    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    require_same_logits(our_logits(hf.import_model(tmp_path)), logits_of(theirs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_read_exactly(dtype, tmp_path):
    torch_models.save(make(*CASES["qwen 2.5"]).to(dtype), tmp_path)
    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs = load(tmp_path, dtype=torch.float32).eval()

    assert hf.read_model_json(tmp_path, "config.json")["dtype"] in str(dtype)
    require_same_logits(our_logits(hf.import_model(tmp_path)), logits_of(theirs))


def test_configurations_of_before_are_read_alike(tmp_path):
    theirs = make(*CASES["llama 3.1"])
    torch_models.save(theirs, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    rules = config.pop("rope_parameters")
    config["rope_theta"] = rules.pop("rope_theta")
    config["rope_scaling"] = rules
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))

    require_same_logits(our_logits(hf.import_model(tmp_path)), logits_of(theirs))


def test_what_was_imported_and_exported_is_the_same_to_the_bit(theirs, tmp_path):
    torch_models.save(theirs, tmp_path / "theirs")
    model = hf.import_model(tmp_path / "theirs")
    config = hf.read_model_json(tmp_path / "theirs", "config.json")
    out = tmp_path / "ours"

    hf.export_model(
        model, tokenizer(), out, config=config, carried={}, shard_bytes=40_000
    )

    assert len(list(out.glob("*.safetensors"))) > 1
    again = named(hf.import_model(out))
    for name, array in named(model).items():
        np.testing.assert_array_equal(bits(again[name]), bits(array))
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert type(reloaded) is type(theirs)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], tensor)


def tokenizer():
    from smf_jax.data.tokenizer import train_tokenizer

    return train_tokenizer(["a b c"], "word", 9)
