"""Families of Hugging Face models, and their names for our parameters."""

import re
from typing import Any, NamedTuple

from smf_jax.config import ConfigError


def _layer(rows: dict[str, str]) -> dict[str, str]:
    return {
        f"blocks/*/{ours}": f"model.layers.*.{theirs}" for ours, theirs in rows.items()
    }


# Our parameters by their names there; * is the number of a layer.
_DECODER = {
    "embedding": "model.embed_tokens.weight",
    "norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
} | _layer(
    {
        "attention_norm/scale": "input_layernorm.weight",
        "attention/query/kernel": "self_attn.q_proj.weight",
        "attention/key/kernel": "self_attn.k_proj.weight",
        "attention/value/kernel": "self_attn.v_proj.weight",
        "attention/out/kernel": "self_attn.o_proj.weight",
        "feed_forward_norm/scale": "post_attention_layernorm.weight",
        "feed_forward/gate/kernel": "mlp.gate_proj.weight",
        "feed_forward/up/kernel": "mlp.up_proj.weight",
        "feed_forward/down/kernel": "mlp.down_proj.weight",
    }
)
_BIASES = _layer(
    {
        "attention/query/bias": "self_attn.q_proj.bias",
        "attention/key/bias": "self_attn.k_proj.bias",
        "attention/value/bias": "self_attn.v_proj.bias",
    }
)
_HEAD_NORMS = _layer(
    {
        "attention/query_norm/scale": "self_attn.q_norm.weight",
        "attention/key_norm/scale": "self_attn.k_norm.weight",
    }
)
# No family of theirs has memory layers: these names are those of `torch_baseline`.
_MEMORY = {"values/*": "model.memory_values.*"} | _layer(
    {
        "memory/query/kernel": "mlp.memory.query.weight",
        "memory/keys": "mlp.memory.keys",
        "memory/query_norm/scale": "mlp.memory.query_norm.weight",
        "memory/key_norm/scale": "mlp.memory.key_norm.weight",
        "memory/gate/kernel": "mlp.memory.gate.weight",
        "memory/out/kernel": "mlp.memory.out.weight",
        "memory/relevance/kernel": "mlp.memory.relevance.weight",
        "memory/relevance/bias": "mlp.memory.relevance.bias",
        "memory_scale": "mlp.memory_scale",
    }
)


class Family(NamedTuple):
    """Models that share one code there."""

    model_type: str
    architecture: str
    names: dict[str, str]  # ours to theirs
    qkv_bias: bool = False
    qk_norm: bool = False
    switched_window: bool = False  # a sliding window is used only if a switch says so
    skips_rope: bool = False  # in layers of its choice
    defaults: tuple[tuple[str, Any], ...] = ()  # where others have none, or another


FAMILIES = (
    Family("llama", "LlamaForCausalLM", _DECODER),
    Family(
        "mistral",
        "MistralForCausalLM",
        _DECODER,
        defaults=(("sliding_window", 4096),),
    ),
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        _DECODER | _BIASES,
        qkv_bias=True,
        switched_window=True,
    ),
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        _DECODER | _HEAD_NORMS,
        qk_norm=True,
        switched_window=True,
    ),
    Family(
        "smollm3",
        "SmolLM3ForCausalLM",
        _DECODER,
        switched_window=True,
        skips_rope=True,
        defaults=(("rope_theta", 2e6), ("tie_word_embeddings", True)),
    ),
)


def theirs(ours: str, family: Family) -> str:
    """Returns the name that a family has for our parameter.

    Raises:
      ConfigError: It has none.
    """
    table = family.names | _MEMORY
    number = re.search(r"/(\d+)(/|$)", ours)
    pattern = re.sub(r"/\d+(?=/|$)", "/*", ours)
    if pattern not in table:
        raise ConfigError(f"{ours} has no name in a {family.model_type} model")
    return table[pattern].replace("*", number[1] if number else "*")


def is_turned(ours: str) -> bool:
    """Returns whether our parameter is a matrix that stands transposed there."""
    return ours.endswith("/kernel")
