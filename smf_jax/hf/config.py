"""What a `config.json` of Hugging Face asks for, in our terms, and the way back."""

from collections.abc import Collection
from typing import Any

import dacite

from smf_jax.config import (
    ConfigError,
    ModelConfig,
    RopeConfig,
    RopeScalingConfig,
    require,
)
from smf_jax.hf.families import FAMILIES, Family

# Keys of a configuration that change no logit, or none of a text that fits the model.
_IDLE = {
    *("_name_or_path", "architectures", "model_type", "transformers_version"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"),
    *("attention_dropout", "initializer_range", "max_position_embeddings"),
    *("max_length", "temperature", "top_p", "top_k", "do_sample", "return_dict"),
    *("output_attentions", "output_hidden_states", "repetition_penalty"),
    *("_attn_implementation_autoset", "max_sequence_length", "model_max_length"),
    *("use_cache", "pretraining_tp", "dtype", "torch_dtype", "is_llama_config"),
    *("no_rope_layer_interval", "max_window_layers", "tokenizer_class"),
    *("transformers.js_config", "unsloth_version", "unsloth_fixed"),
}
_READ = {
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act"),
    *("rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters"),
    *("tie_word_embeddings", "layer_types", "no_rope_layers"),
    *("sliding_window", "use_sliding_window"),
}
MOST_LAYERS = 10_000  # so many are a mistake, and would be made before it is noticed
_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position": "original_max_position_embeddings",
}


def family_of(config: dict[str, Any]) -> Family:
    """Returns the family of a `config.json`.

    Raises:
      ConfigError: It is none of ours.
    """
    for family in FAMILIES:
        named = config.get("architectures") in (None, [], [family.architecture])
        if config.get("model_type") == family.model_type and named:
            return family
    known = ", ".join(family.architecture for family in FAMILIES)
    raise ConfigError(
        f"config.json: model_type={config.get('model_type')!r} with architectures="
        f"{config.get('architectures')!r} is none of {known}"
    )


def read_config(
    config: dict[str, Any], ignore: Collection[str] = ()
) -> tuple[Family, ModelConfig]:
    """Returns the family of a `config.json` and our configuration of its model.

    Keys may be those of today (`rope_parameters`) or those before (`rope_theta`,
    `rope_scaling`).

    Args:
      config: What the file holds.
      ignore: Keys that are set aside.

    Raises:
      ConfigError: It asks for something that our model does not have; all are named.
    """
    family = family_of(config)
    config = dict(family.defaults) | config
    absent = sorted(set(ignore) - config.keys())
    require(not absent, f"config.json has no {', '.join(absent)} to ignore")
    config = {name: value for name, value in config.items() if name not in ignore}
    try:
        wrong = _unsupported(config, family)
        require(
            not wrong,
            f"asks, as a {family.model_type}, for what is not supported: "
            f"{'; '.join(wrong)} (--ignore KEY imports without it, on your word)",
        )
        return family, _model_config(config, family)
    except KeyError as error:
        raise ConfigError(f"config.json lacks {error}") from error
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ConfigError(f"config.json: {error}") from error
    except dacite.DaciteError as error:
        raise ConfigError(f"config.json is broken: {error}") from error


def _unsupported(config: dict[str, Any], family: Family) -> list[str]:
    def asked(name):
        return f"{name}={config[name]!r}"

    wrong = [
        asked(name)
        for name, value in config.items()
        if name not in _IDLE | _READ and value not in (None, False, 0, "", [], {})
    ]
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        wrong.append(asked("hidden_act"))
    windowed = config.get("sliding_window") is not None
    if windowed and (not family.switched_window or config.get("use_sliding_window")):
        wrong.append(asked("sliding_window"))
    if set(config.get("layer_types") or ()) - {"full_attention"}:
        wrong.append(asked("layer_types"))
    if config.get("no_rope_layers") and not family.skips_rope:
        wrong.append(asked("no_rope_layers"))
    rules = _rope_rules(config)
    where = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    if _rope_type(rules) not in ("default", "llama3"):
        wrong.append(f"{where}: rope_type={_rope_type(rules)!r}")
    known = {"rope_type", "type", "rope_theta", *_LLAMA3.values()}
    wrong += [
        f"{where}: {name}={value!r}"
        for name, value in rules.items()
        if name not in known and value is not None
    ]
    return wrong


def _rope_rules(config: dict[str, Any]) -> dict[str, Any]:
    rules = config.get("rope_parameters") or config.get("rope_scaling") or {}
    require(isinstance(rules, dict), f"{rules!r} are no rules of rotary positions")
    return rules


def _rope_type(rules: dict[str, Any]) -> str:
    return rules.get("rope_type", rules.get("type", "default"))


def _model_config(config: dict[str, Any], family: Family) -> ModelConfig:
    rules = _rope_rules(config)
    theta = rules.get("rope_theta", config.get("rope_theta", 10_000.0))
    scaling = None
    if _rope_type(rules) == "llama3":
        scaling = RopeScalingConfig(
            **{ours: rules[theirs] for ours, theirs in _LLAMA3.items()}
        )
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    require(layers <= MOST_LAYERS, f"num_hidden_layers={layers} is above {MOST_LAYERS}")
    skipping = ()
    if family.skips_rope:
        every = config.get("no_rope_layer_interval", 4)
        uses = config.get("no_rope_layers") or [(i + 1) % every for i in range(layers)]
        skipping = tuple(layer for layer, used in enumerate(uses) if not used)
    fields = dict(
        vocab_size=config["vocab_size"],
        dim=config["hidden_size"],
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        hidden_dim=config["intermediate_size"],
        rope=RopeConfig(theta=float(theta), scaling=scaling, skip_layers=skipping),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        norm_eps=float(config["rms_norm_eps"]),
        memory=None,
    )
    for name in ("vocab_size", "dim", "hidden_dim"):
        truth = isinstance(fields[name], bool)  # which is an int to dacite
        require(not truth, f"{name}={fields[name]} is no number")
    require(fields["vocab_size"] > 0, "vocab_size must be above 0")
    return dacite.from_dict(ModelConfig, fields)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Returns the `config.json` of the family that has a model like ours.

    Raises:
      ConfigError: None has.
    """
    asked = (config.qkv_bias, config.qk_norm, bool(config.rope.skip_layers))
    found = [f for f in FAMILIES if (f.qkv_bias, f.qk_norm, f.skips_rope) == asked]
    if not found:
        raise ConfigError(
            f"no family has qkv_bias={config.qkv_bias}, qk_norm={config.qk_norm} and "
            f"rope.skip_layers={config.rope.skip_layers} at once"
        )
    family, layers = found[0], range(config.num_layers)
    written = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": None,
        "tie_word_embeddings": config.tie_embeddings,
    }
    if config.rope.scaling is not None:
        written["rope_scaling"] = {"rope_type": "llama3"} | {
            theirs: getattr(config.rope.scaling, ours)
            for ours, theirs in _LLAMA3.items()
        }
    if family.skips_rope:
        uses = [int(layer not in config.rope.skip_layers) for layer in layers]
        written["no_rope_layers"] = uses
    return written
