"""What a `config.json` asks for is supported, or refused by name."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smf_jax.config import ConfigError, ModelConfig, RopeConfig, RopeScalingConfig
from smf_jax.hf.config import read_config, write_config
from smf_jax.hf.keys import set_aside
from tests.tiny import model_config

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 12,
    "intermediate_size": 10,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "head_dim": 6,
    "rms_norm_eps": 1e-5,
}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
MISTRAL = LLAMA | {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "sliding_window": None,
}
SMOLLM3 = LLAMA | {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3"}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3)
ROPE_KEYS = {
    *("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"),
    *("original_max_position_embeddings", "attention_factor", "truncate"),
    *("mscale", "mscale_all_dim", "rope_theta"),
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4,  # as in published files
    "original_max_position_embeddings": 32_768,
}
NESTED_ROPE = {"full_attention": {"rope_type": "linear", "factor": 4.0}}
# A configuration, what is changed in it, and what the refusal must name.
UNSUPPORTED = [
    (LLAMA, {"attention_bias": True}, "attention_bias=True"),
    (LLAMA, {"mlp_bias": True, "window_pattern": 3}, "mlp_bias=True; window_pattern=3"),
    (LLAMA, {"hidden_act": "gelu"}, "hidden_act='gelu'"),
    (LLAMA, {"sliding_window": 4096}, "sliding_window=4096"),
    (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config="),
    (LLAMA, {"num_experts": 8}, "num_experts=8"),
    (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    (LLAMA, {"partial_rotary_factor": 0}, "partial_rotary_factor=0"),
    (LLAMA, {"logits_scaling": 8.0}, "logits_scaling=8.0"),
    (LLAMA, {"pruned_heads": {"0": [1]}}, "pruned_heads="),
    (LLAMA, {"no_rope_layers": [1, 0, 1]}, "no_rope_layers="),
    (LLAMA, {"rope_scaling": {"type": "longrope"}}, "rope_type='longrope'"),
    (LLAMA, {"rope_scaling": {"type": "linear"}}, "lacks 'factor'"),
    (LLAMA, {"rope_scaling": YARN | {"factor": 0}}, "rope_scaling.factor=0"),
    (LLAMA, {"rope_scaling": YARN | {"beta_slow": 33}}, "rope_scaling.beta_slow=33"),
    (LLAMA, {"rope_scaling": YARN, "rope_theta": 1.0}, "rope.theta=1.0"),
    (LLAMA, {"rope_scaling": YARN | {"mrope_section": [3]}}, "mrope_section=[3]"),
    (LLAMA, {"rope_parameters": {"rope_type": "dynamic"}}, "rope_type='dynamic'"),
    (LLAMA, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_"),
    (LLAMA, {"rope_parameters": NESTED_ROPE}, "rope_parameters: full_attention="),
    (MISTRAL, {"sliding_window": 4096}, "sliding_window=4096"),
    (QWEN2, {"sliding_window": 9, "use_sliding_window": True}, "sliding_window=9"),
    (QWEN2, {"layer_types": ["sliding_attention"] * 3}, "layer_types="),
    (LLAMA, {"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
    (LLAMA, {"model_type": "gemma2"}, "model_type='gemma2'"),
    (QWEN2, {"architectures": ["LlamaForCausalLM"]}, "model_type='qwen2'"),
    (LLAMA, {"architectures": "LlamaForCausalLM"}, "architectures="),
    (LLAMA, {"rope_scaling": {"rope_type": "llama3"}}, "factor"),
    (LLAMA, {"num_key_value_heads": 3}, "model.num_kv_heads=3"),
    (LLAMA, {"head_dim": 5}, "must be even"),
    (LLAMA, {"num_attention_heads": 0}, "config.json"),
    (LLAMA, {"hidden_size": "wide"}, "config.json"),
    (LLAMA, {"vocab_size": None}, "config.json"),
    (LLAMA, {"vocab_size": True}, "vocab_size=True"),
    (SMOLLM3, {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000"),
    (LLAMA, {"rope_scaling": 7}, "config.json"),
]


@pytest.mark.parametrize(("config", "changes", "named"), UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(config, changes, named):
    with pytest.raises(ConfigError) as caught:
        read_config(config | changes)

    assert named in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def without(config, key):
    return {name: value for name, value in config.items() if name != key}


@pytest.mark.parametrize("key", sorted(LLAMA.keys() - {"architectures", "hidden_act"}))
def test_a_missing_key_is_named_or_has_a_default(key):
    config = without(LLAMA, key)

    if key == "num_key_value_heads":
        assert read_config(config).num_kv_heads == 4
    elif key == "head_dim":
        assert read_config(config | {"hidden_size": 16}).head_dim == 4
    else:
        with pytest.raises(ConfigError, match=key):
            read_config(config)


def test_a_key_may_be_ignored_by_name():
    config = MISTRAL | {"sliding_window": 4096}

    assert read_config(config, ignore=["sliding_window"]) == read_config(MISTRAL)
    with pytest.raises(ConfigError, match="has no other to ignore"):
        read_config(config, ignore=["other"])


# Settings of other programs and of older versions of transformers.
SET_ASIDE = {
    "_commit_hash": "c",
    "_flash_attn_2_enabled": True,
    "attn_implementation": "sdpa",
    "auto_map": {"AutoModel": "x.py"},
    "decoder_start_token_id": 3,
    "embd_pdrop": 0.1,
    "finetuning_task": "chat",
    "forced_eos_token_id": 2,
    "gradient_checkpointing": True,
    "id2label": {"0": "LABEL_0"},
    "internal_version": "v2",
    "license": "mit",
    "neftune_noise_alpha": 5,
    "num_beams": 4,
    "prefix": "x",
    "repetition_penalty": 1.1,
    "resid_dropout": 0.1,
    "tokenizer_class": "LlamaTokenizer",
    "transformers.js_config": {"dtype": "q4"},
    "unsloth_fixed": True,
    "use_flash_attention_2": True,
}
NEUTRAL = {
    "attention_bias": False,
    "logits_scaling": 1.0,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "pruned_heads": {},
    "rope_interleaved": False,
    "rope_scaling": {"rope_type": "default", "partial_rotary_factor": 1.0},
}


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config["model_type"])
def test_keys_that_change_no_logit_need_not_be_ignored_by_name(config):
    assert read_config(config | SET_ASIDE | NEUTRAL) == read_config(config)


def test_what_is_set_aside_is_named_but_for_the_keys_of_every_model():
    usual = {"bos_token_id": 1, "torch_dtype": "float32", "use_cache": True}
    idle = {"attention_dropout": 0.0, "return_dict": False}

    named = set_aside(LLAMA | usual | idle | NEUTRAL | SET_ASIDE)

    assert named == list(SET_ASIDE)


def test_the_defaults_of_families_are_known():
    llama, smollm3 = read_config(LLAMA), read_config(SMOLLM3)

    assert (llama.rope.theta, smollm3.rope.theta) == (10_000, 2_000_000)
    assert (llama.tie_embeddings, smollm3.tie_embeddings) == (False, True)
    assert read_config(SMOLLM3 | {"num_hidden_layers": 5}).rope.skip_layers == (3,)
    with pytest.raises(ConfigError, match="sliding_window=4096"):
        read_config(without(MISTRAL, "sliding_window"))


@pytest.mark.parametrize("window", [{"use_sliding_window": False}, {}])
def test_a_window_that_is_not_used_is_ignored(window):
    assert read_config(QWEN2 | {"sliding_window": 4096} | window) == read_config(QWEN2)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}},
        {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"type": "llama3"}},
        {"rope_parameters": LLAMA3 | {"rope_type": "llama3", "rope_theta": 5e5}},
    ],
)
def test_old_and_new_keys_of_rotary_embeddings_mean_the_same(rope):
    scaling = RopeScalingConfig(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position=8192,
    )

    assert read_config(LLAMA | rope).rope == RopeConfig(theta=5e5, scaling=scaling)


def yarn_of(changes, **others) -> RopeScalingConfig:
    return read_config(LLAMA | {"rope_scaling": YARN | changes} | others).rope.scaling


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, {}),
        ({"finetuned": True, "partial_rotary_factor": 1.0}, {}),
        ({"attention_factor": None, "beta_fast": None, "mscale": 0.7}, {}),
        ({"beta_fast": 16, "beta_slow": 2}, {"beta_fast": 16.0, "beta_slow": 2.0}),
        ({"truncate": False}, {"truncate": False}),
        ({"attention_factor": 1, "mscale": 2.0}, {"attention_factor": 1.0}),
        # (0.1 * 2 ln 4 + 1) / (0.1 * 0.5 ln 4 + 1)
        (
            {"mscale": 2.0, "mscale_all_dim": 0.5},
            {"attention_factor": pytest.approx(1.194465)},
        ),
    ],
    ids=repr,
)
def test_settings_of_yarn_have_the_defaults_of_the_paper(changes, fields):
    base = RopeScalingConfig(type="yarn", factor=4.0, original_max_position=32_768)

    got = dataclasses.asdict(yarn_of(changes))

    assert got == dataclasses.asdict(base) | fields


def test_the_context_before_scaling_is_by_default_that_of_the_model():
    old = YARN | {"original_max_position_embeddings": None}

    assert yarn_of(old, max_position_embeddings=64).original_max_position == 64
    with pytest.raises(ConfigError, match="lacks 'original_max_position_embeddings'"):
        yarn_of(old)


@pytest.mark.parametrize("key", ["rope_type", "type"])
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_linear_scaling_is_kept_whatever_else_is_ignored(key, place):
    config = LLAMA | {place: {key: "linear", "factor": 2}, "window_pattern": 3}
    scaling = RopeScalingConfig(type="linear", factor=2.0)

    assert read_config(config, ignore=["window_pattern"]).rope.scaling == scaling


LINEAR = RopeScalingConfig(type="linear", factor=3.0)
EXACT = RopeScalingConfig(
    type="yarn", beta_fast=9.0, beta_slow=2.0, truncate=False, attention_factor=1.5
)
CONFIGS = [
    model_config(memory=None),
    model_config(memory=None, qkv_bias=True, tie_embeddings=False),
    model_config(memory=None, qk_norm=True, rope=RopeConfig(theta=5e5)),
    model_config(memory=None, rope=RopeConfig(scaling=RopeScalingConfig(factor=4.0))),
    model_config(memory=None, rope=RopeConfig(scaling=LINEAR)),
    model_config(memory=None, rope=RopeConfig(scaling=RopeScalingConfig(type="yarn"))),
    model_config(memory=None, qkv_bias=True, rope=RopeConfig(scaling=EXACT)),
    model_config(memory=None, num_layers=5, rope=RopeConfig(skip_layers=(1, 4))),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_written_configuration_is_read_as_it_was(config):
    assert read_config(write_config(config)) == config


def test_a_model_that_no_family_has_is_refused():
    with pytest.raises(ConfigError, match="no family has qkv_bias=True, qk_norm=True"):
        write_config(ModelConfig(vocab_size=9, qkv_bias=True, qk_norm=True))


@pytest.mark.parametrize("memory", [None, {"layers": [7]}, {"top_p": 3}, "none"])
def test_memory_layers_that_are_described_wrongly_are_refused(memory):
    decoder = write_config(model_config(memory=None))
    config = {"model_type": "smf_memory", "decoder": decoder}

    assert read_config(config | {"memory": {"layers": [1]}}).memory.layers == (1,)
    with pytest.raises(ConfigError, match=r"^config\.json: "):
        read_config(config | {"memory": memory})


# Any value that JSON has, small and nested a little.
text = st.text(max_size=3)
scalars = st.none() | st.booleans() | st.integers(-9, 99) | st.floats() | text
values = st.recursive(
    scalars,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(text, v, max_size=3),
    max_leaves=4,
)
ropes = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(["linear", "llama3", "yarn"])},
    optional=dict.fromkeys(sorted(ROPE_KEYS), scalars),
)
keys = st.sampled_from(
    [
        *(*LLAMA, "rope_parameters", "rope_scaling", "rope_theta", "layer_types"),
        *("sliding_window", "no_rope_layers", "no_rope_layer_interval", "anything"),
        "tie_word_embeddings",
    ]
)


@settings(max_examples=300)
@given(
    st.sampled_from([LLAMA, QWEN2, MISTRAL, SMOLLM3]),
    st.dictionaries(keys, values | ropes, max_size=3),
)
def test_any_configuration_is_read_or_refused_in_one_line(base, changes):
    refused = ""
    try:
        read_config(base | changes)
    except ConfigError as error:
        refused = str(error)

    assert len(refused.splitlines()) <= 1
