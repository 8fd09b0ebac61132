"""Translates the metadata of a GGUF file to the `config.json` of Hugging Face."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from smf_jax.config import require

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
# Keys after the name of the architecture.
_KEYS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_OPTIONAL = {
    "attention.head_count_kv": "num_key_value_heads",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "attention.key_length": "head_dim",
}
_TOKENS = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "padding_token_id": "pad_token_id",
}
_SCALING = {
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
# Llama 3's, whose factors alone a file holds.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_CONTEXT = 8192


def config_of(
    path: Path,
    metadata: dict[str, Any],
    vocab_size: int,
    is_tied: bool,
    rope_factors: Float[np.ndarray, " half"] | None,
) -> dict[str, Any]:
    """Returns the `config.json` of the model of a GGUF file.

    Keys of the architecture that have no counterpart keep their names, so that they
    are refused as unsupported ones. `rope_factors` divide the rotary frequencies.

    Raises:
      ConfigError: Of another architecture, a key is missing or no single number, or the
        factors are not those of Llama 3's scaling.
    """
    kind = metadata.get("general.architecture")
    require(
        isinstance(kind, str) and kind in ARCHITECTURES,
        f"{path}: architecture {kind!r} is not supported, only "
        f"{', '.join(ARCHITECTURES)}",
    )
    prefix = f"{kind}."
    values = {
        name.removeprefix(prefix): value
        for name, value in metadata.items()
        if name.startswith(prefix)
    }
    missing = [f"{prefix}{name}" for name in _KEYS if name not in values]
    require(not missing, f"{path} lacks {', '.join(missing)}")
    for name, value in values.items():
        require(
            isinstance(value, str | int) or _is_finite(value),
            f"{path}: {prefix}{name} is not one finite number",
        )
    for name in (_KEYS | _OPTIONAL | _SCALING).keys() & values.keys():
        is_number = not isinstance(values[name], str | bool)
        require(is_number, f"{path}: {prefix}{name}={values[name]} is not a number")
    config = {"architectures": [ARCHITECTURES[kind]], "model_type": kind}
    known = _KEYS | _OPTIONAL
    config |= {known[name]: values.pop(name) for name in known if name in values}
    heads = config["num_attention_heads"]
    require(isinstance(heads, int) and heads > 0, f"{path}: {heads!r} attention heads")
    config["num_key_value_heads"] = config.get("num_key_value_heads") or heads
    config.setdefault("head_dim", config["hidden_size"] // heads)
    config["rope_scaling"] = _rope_scaling(path, values, config, rope_factors)
    # These say again what others say, or ask for what is not supported.
    for name, same in (
        ("rope.dimension_count", config["head_dim"]),
        ("attention.value_length", config["head_dim"]),
        ("vocab_size", vocab_size),
    ):
        if values.get(name) == same:
            del values[name]
    tokens = {n: metadata.get(f"tokenizer.ggml.{of}") for of, n in _TOKENS.items()}
    return (
        config
        | {"vocab_size": vocab_size, "tie_word_embeddings": is_tied}
        | {"hidden_act": "silu", "dtype": "float32"}
        | {name: id for name, id in tokens.items() if type(id) is int}
        | {f"{prefix}{name}": value for name, value in values.items()}
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _rope_scaling(path: Path, values, config, factors) -> dict[str, Any] | None:
    """Returns the scaling of rotary positions, and takes its keys from the values."""
    # As llama.cpp does, a factor alone scales linearly.
    alone = "linear" if "rope.scaling.factor" in values else "none"
    kind = values.pop("rope.scaling.type", alone)
    given = {n: values.pop(of) for of, n in _SCALING.items() if of in values}
    values.pop("rope.scaling.finetuned", None)  # a note on the training
    if factors is not None:
        require(kind == "none", f"{path}: rope_freqs.weight beside {kind} scaling")
        return _llama3_scaling(path, config, factors, given)
    if kind == "none":
        return None
    return {"rope_type": kind} | given


def _llama3_scaling(path: Path, config, factors, given) -> dict[str, Any]:
    """Returns the scaling of Llama 3 that divides the frequencies by given factors.

    Source: "The Llama 3 Herd of Models", and its reference implementation.
    """
    context = given.get("original_max_position_embeddings", _LLAMA3_CONTEXT)
    factor, width = float(factors.max()), config["head_dim"]
    matches = math.isfinite(factor) and factors.size * 2 == width
    if matches:
        (low, high), theta = _LLAMA3.values(), config.get("rope_theta", 10_000.0)
        with np.errstate(all="ignore"):  # of a damaged file
            waves = 2 * math.pi * np.float64(theta) ** (np.arange(0, width, 2) / width)
            kept = np.clip((context / waves - low) / (high - low), 0, 1)
            want = 1 / ((1 - kept) / factor + kept)
        matches = np.allclose(factors.ravel(), want, rtol=1e-5, atol=0)
    require(
        bool(matches),
        f"{path}: rope_freqs.weight is not the scaling of Llama 3 from {context} "
        "positions, and no other is supported",
    )
    return {
        "rope_type": "llama3",
        "factor": factor,
        **_LLAMA3,
        "original_max_position_embeddings": context,
    }
