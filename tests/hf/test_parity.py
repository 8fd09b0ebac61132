"""Models of every family give the logits and texts that `transformers` gives."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smf_jax import hf
from smf_jax.hf import save
from smf_jax.model.generate import generate
from smf_jax.model.transformer import Transformer
from tests import tiny, torch_models
from tests.integration.files import read_json
from tests.tiny import bits, named

torch_models.require_torch()

import torch  # noqa: E402
import transformers  # noqa: E402

VOCAB, PROMPT, NEW = 97, 8, 32
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
# The first positions are those of the context before scaling.
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,  # so that pairs of 12 dimensions are kept, blended and scaled
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
EXACT_YARN = YARN | {
    **{"beta_fast": 2.0, "beta_slow": 0.5, "truncate": False},
    **{"mscale": 2.0, "mscale_all_dim": 0.5},
}
# Llama is also the family of SmolLM, SmolLM2 and TinyLlama.
CASES = {
    "llama 2, untied": ("Llama", {"tie_word_embeddings": False}),
    "llama 2, multi-head": ("Llama", {"num_key_value_heads": 4}),
    "llama 3.1": ("Llama", {"rope_parameters": LLAMA3}),
    "llama, linear": ("Llama", {"rope_parameters": LINEAR}),
    "llama, yarn": ("Llama", {"rope_parameters": EXACT_YARN}),
    "llama, wide heads": ("Llama", {"head_dim": 20}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 12}),
    "qwen 2.5": ("Qwen2", {}),
    "qwen 2.5, untied, multi-head": (
        "Qwen2",
        {"tie_word_embeddings": False, "num_key_value_heads": 4},
    ),
    "qwen 2.5, linear": ("Qwen2", {"rope_parameters": LINEAR}),
    "qwen 2.5, yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen 3": ("Qwen3", {"head_dim": 16}),
    "qwen 3, untied": ("Qwen3", {"head_dim": 20, "tie_word_embeddings": False}),
    "smollm 3": ("SmolLM3", {}),
}
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (3, PROMPT + NEW), np.int32)
# float32 rounding through four layers comes to about 1e-6 of logits near 1.
TOLERANCE = 2e-5


class Case(NamedTuple):
    folder: Path
    torch_model: transformers.PreTrainedModel  # saved there
    model: Transformer  # imported from there


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    torch_model = make(*request.param)
    torch_models.save(torch_model, folder)
    return Case(folder, torch_model, hf.import_model(folder))


def make(family, changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL | changes)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def logits_of(model, tokens=TOKENS) -> np.ndarray:
    return np.asarray(tiny.call(model, tokens)[0])


def require_same_logits(model, torch_model):
    got = logits_of(model)
    with torch.no_grad():
        want = torch_model(torch.from_numpy(TOKENS).long()).logits.float().numpy()
    assert np.abs(got - want).max() <= TOLERANCE
    np.testing.assert_array_equal(got.argmax(-1), want.argmax(-1))


def test_logits_are_those_of_transformers(case):
    require_same_logits(case.model, case.torch_model)


def test_greedy_texts_are_those_of_transformers(case):
    prompts = TOKENS[:, :PROMPT]
    no_end = jnp.zeros(VOCAB, bool)
    options = transformers.GenerationConfig(
        max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    with torch.no_grad():
        tokens = torch.from_numpy(prompts).long()
        want = case.torch_model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            generation_config=options,
        ).numpy()

    graph, params = nnx.split(case.model)

    @jax.jit
    def extend(params):
        model, is_prompt = nnx.merge(graph, params), jnp.ones(prompts.shape, bool)
        return generate(model, jnp.asarray(prompts), is_prompt, NEW, no_end)

    got = extend(params)

    np.testing.assert_array_equal(got, want[:, PROMPT:])
    # Without a cache, too, each token is the best one after those before it.
    best = logits_of(case.model, want.astype(np.int32)).argmax(-1)
    np.testing.assert_array_equal(best[:, PROMPT - 1 : -1], want[:, PROMPT:])


def test_a_model_is_exported_as_it_was_imported_to_the_bit(
    case, tmp_path, tokenizer, monkeypatch
):
    config = read_json(case.folder / "config.json")
    out = tmp_path / "out"
    monkeypatch.setattr(save, "SHARD_BYTES", 40_000)

    hf.export_model(case.model, tokenizer, out, config=config, carried={})

    assert len(list(out.glob("*.safetensors"))) > 1
    exported = named(hf.import_model(out))
    for name, array in named(case.model).items():
        np.testing.assert_array_equal(bits(exported[name]), bits(array))
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert type(reloaded) is type(case.torch_model)
    for name, tensor in case.torch_model.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], tensor)


def test_a_model_in_several_files_is_loaded_completely(tmp_path):
    torch_model = make(*CASES["qwen 3"])
    torch_models.save(torch_model, tmp_path, max_shard_size="50KB")

    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    require_same_logits(hf.import_model(tmp_path), torch_model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_loaded_exactly(dtype, tmp_path):
    torch_models.save(make(*CASES["qwen 2.5"]).to(dtype), tmp_path)
    load = transformers.AutoModelForCausalLM.from_pretrained
    torch_model = load(tmp_path, dtype=torch.float32).eval()

    assert read_json(tmp_path / "config.json")["dtype"] in str(dtype)
    require_same_logits(hf.import_model(tmp_path), torch_model)


SCALED = ["llama 3.1", "llama, linear", "llama, yarn", "qwen 2.5, yarn"]


@pytest.mark.parametrize("name", SCALED)
def test_older_configurations_are_read_alike(name, tmp_path):
    torch_model = make(*CASES[name])
    torch_models.save(torch_model, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))

    require_same_logits(hf.import_model(tmp_path), torch_model)


@pytest.mark.parametrize("name", SCALED)
def test_a_written_configuration_scales_positions_as_before(name, tmp_path, tokenizer):
    torch_model = make(*CASES[name])
    torch_models.save(torch_model, tmp_path / "in")
    model = hf.import_model(tmp_path / "in")

    hf.export_model(model, tokenizer, tmp_path / "out")

    assert hf.import_model(tmp_path / "out").config == model.config
    load = transformers.AutoModelForCausalLM.from_pretrained
    require_same_logits(model, load(tmp_path / "out").eval())
