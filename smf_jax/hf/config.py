"""Translates between the `config.json` of Hugging Face and `ModelConfig`."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any, NamedTuple

import dacite

from smf_jax.config import (
    ConfigError,
    MemoryConfig,
    ModelConfig,
    RopeConfig,
    RopeScalingConfig,
    require,
)
from smf_jax.hf.keys import changes_no_logit

# The model type of exports with memory layers, which other programs cannot load.
MEMORY_TYPE = "smf_memory"
MAX_LAYERS = 10_000  # more are a mistake, which would take long to notice
# Fields of `ModelConfig` with their keys.
_KEYS = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
# Keys that are read or checked here.
_KNOWN = {
    *_KEYS.values(),
    *("architectures", "model_type", "hidden_act", "max_position_embeddings"),
    *("rope_theta", "rope_scaling", "rope_parameters", "layer_types"),
    *("no_rope_layers", "no_rope_layer_interval"),
    *("sliding_window", "use_sliding_window", "max_window_layers"),
}
# Fields of `RopeScalingConfig` with their keys, by type.
_SCALINGS = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_max_position": "original_max_position_embeddings",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position": "original_max_position_embeddings",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
        "attention_factor": "attention_factor",
    },
}
_OPTIONAL = ("beta_fast", "beta_slow", "attention_factor")
_KNOWN_ROPE = {
    *("rope_type", "type", "rope_theta", "mscale", "mscale_all_dim"),
    *(key for keys in _SCALINGS.values() for key in keys.values()),
}
# Errors of values that have another type or size than expected.
_INVALID = (
    *(TypeError, ValueError, LookupError, ArithmeticError, AttributeError),
    dacite.DaciteError,
)


class _Family(NamedTuple):
    """Models of one architecture."""

    model_type: str
    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    optional_window: bool = False  # `sliding_window` needs `use_sliding_window`
    skips_rope: bool = False  # `no_rope_layers` is supported
    defaults: tuple[tuple[str, Any], ...] = ()  # that differ from Llama's


_FAMILIES = (
    _Family("llama", "LlamaForCausalLM"),
    _Family("mistral", "MistralForCausalLM", defaults=(("sliding_window", 4096),)),
    _Family("qwen2", "Qwen2ForCausalLM", qkv_bias=True, optional_window=True),
    _Family("qwen3", "Qwen3ForCausalLM", qk_norm=True, optional_window=True),
    _Family(
        "smollm3",
        "SmolLM3ForCausalLM",
        optional_window=True,
        skips_rope=True,
        defaults=(("rope_theta", 2e6), ("tie_word_embeddings", True)),
    ),
)


def split_config(config: dict[str, Any]) -> tuple[dict[str, Any], MemoryConfig | None]:
    """Returns the decoder's part of a `config.json`, and the memory layers, if any."""
    if config.get("model_type") != MEMORY_TYPE:
        return config, None
    try:
        rules = dacite.Config(strict=True, cast=[tuple])
        memory = dacite.from_dict(MemoryConfig, config["memory"], rules)
        return dict(config["decoder"]), memory
    except _INVALID as error:
        raise ConfigError(f"config.json: memory: {error}") from error


def read_config(config: dict[str, Any], ignore: Collection[str] = ()) -> ModelConfig:
    """Returns the model that a `config.json` describes.

    Rotary embeddings may be described by `rope_parameters`, or by the older
    `rope_theta` and `rope_scaling`. `ignore` names keys.

    Raises:
      ConfigError: A key is missing, wrong or unsupported; names all unsupported ones.
    """
    config, memory = split_config(config)
    family = _family_of(config)
    config = dict(family.defaults) | config
    absent = sorted(set(ignore) - config.keys())
    require(not absent, f"config.json has no {', '.join(absent)} to ignore")
    config = {name: value for name, value in config.items() if name not in ignore}
    try:
        unsupported = _unsupported(config, family)
        require(
            not unsupported,
            f"not supported for {family.model_type}: {'; '.join(unsupported)} "
            "(--ignore KEY imports the model without it)",
        )
        return dataclasses.replace(_model_config(config, family), memory=memory)
    except KeyError as error:
        raise ConfigError(f"config.json lacks {error}") from error
    except _INVALID as error:
        raise ConfigError(f"config.json: {error}") from error


def _family_of(config: dict[str, Any]) -> _Family:
    for family in _FAMILIES:
        fits = config.get("architectures") in (None, [], [family.architecture])
        if config.get("model_type") == family.model_type and fits:
            return family
    known = ", ".join(family.architecture for family in _FAMILIES)
    raise ConfigError(
        f"config.json: model_type={config.get('model_type')!r} with architectures="
        f"{config.get('architectures')!r} is not supported, only {known}"
    )


def _unsupported(config: dict[str, Any], family: _Family) -> list[str]:
    names = [
        name
        for name, value in config.items()
        if name not in _KNOWN and not changes_no_logit(name, value)
    ]
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        names.append("hidden_act")
    has_window = config.get("sliding_window") is not None
    if has_window and (not family.optional_window or config.get("use_sliding_window")):
        names.append("sliding_window")
    if set(config.get("layer_types") or ()) - {"full_attention"}:
        names.append("layer_types")
    if config.get("no_rope_layers") and not family.skips_rope:
        names.append("no_rope_layers")
    unsupported = [f"{name}={config[name]!r}" for name in names]
    rope = _rope(config)
    where = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    if _rope_type(rope) not in ("default", *_SCALINGS):
        unsupported.append(f"{where}: rope_type={_rope_type(rope)!r}")
    return unsupported + [
        f"{where}: {name}={value!r}"
        for name, value in rope.items()
        if name not in _KNOWN_ROPE and not changes_no_logit(name, value)
    ]


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    require(isinstance(rope, dict), f"rope parameters {rope!r} are not an object")
    return rope


def _rope_type(rope: dict[str, Any]) -> str:
    return rope.get("rope_type", rope.get("type", "default"))


def _scaling(config: dict[str, Any], rope: dict[str, Any]) -> RopeScalingConfig | None:
    kind = _rope_type(rope)
    if kind == "default":
        return None
    # Later ones replace earlier ones, unless they are null.
    values = [
        ("original_max_position_embeddings", config.get("max_position_embeddings")),
        ("attention_factor", _attention_factor(rope)),
        *rope.items(),
        ("truncate", bool(rope.get("truncate", True))),
    ]
    given = {key: value for key, value in values if value is not None}
    fields = {
        name: given[key]
        for name, key in _SCALINGS[kind].items()
        if key in given or key not in _OPTIONAL
    }
    rules = dacite.Config(type_hooks={float: float})  # JSON writes 4.0 also as 4
    return dacite.from_dict(RopeScalingConfig, {"type": kind} | fields, rules)


def _attention_factor(rope: dict[str, Any]) -> float | None:
    """Returns YaRN's factor of queries and keys, if two scales describe it."""
    scales = rope.get("mscale"), rope.get("mscale_all_dim")
    if not all(scales):
        return None
    of_rotated, of_all = (
        0.1 * scale * math.log(max(rope["factor"], 1)) + 1 for scale in scales
    )
    return of_rotated / of_all


def _model_config(config: dict[str, Any], family: _Family) -> ModelConfig:
    rope = _rope(config)
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    require(layers <= MAX_LAYERS, f"num_hidden_layers={layers} is above {MAX_LAYERS}")
    skipped = ()
    if family.skips_rope:
        every = config.get("no_rope_layer_interval", 4)
        uses = config.get("no_rope_layers") or [(i + 1) % every for i in range(layers)]
        skipped = tuple(layer for layer, used in enumerate(uses) if not used)
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    config |= {
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "rms_norm_eps": float(config["rms_norm_eps"]),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
    }
    fields = {name: config[key] for name, key in _KEYS.items()} | {
        "rope": RopeConfig(
            theta=float(theta), scaling=_scaling(config, rope), skip_layers=skipped
        ),
        "qkv_bias": family.qkv_bias,
        "qk_norm": family.qk_norm,
        "memory": None,
    }
    for name in ("vocab_size", "dim", "hidden_dim"):  # dacite takes a bool for an int
        is_bool = isinstance(fields[name], bool)
        require(not is_bool, f"{name}={fields[name]} is not a number")
    require(fields["vocab_size"] > 0, "vocab_size must be above 0")
    return dacite.from_dict(ModelConfig, fields)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Returns the `config.json` of a model without its memory layers."""
    features = (config.qkv_bias, config.qk_norm, bool(config.rope.skip_layers))
    found = [f for f in _FAMILIES if (f.qkv_bias, f.qk_norm, f.skips_rope) == features]
    require(
        len(found) > 0,
        f"no family has qkv_bias={config.qkv_bias}, qk_norm={config.qk_norm} and "
        f"rope.skip_layers={config.rope.skip_layers} at once",
    )
    family, scaling = found[0], config.rope.scaling
    written = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **{key: getattr(config, name) for name, key in _KEYS.items()},
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "rope_theta": config.rope.theta,
        "rope_scaling": None,
    }
    if scaling is not None:
        values = {
            key: getattr(scaling, name) for name, key in _SCALINGS[scaling.type].items()
        }
        given = {key: value for key, value in values.items() if value is not None}
        written["rope_scaling"] = {"rope_type": scaling.type} | given
    if family.skips_rope:
        written["no_rope_layers"] = [
            int(layer not in config.rope.skip_layers)
            for layer in range(config.num_layers)
        ]
    return written
