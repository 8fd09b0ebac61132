"""What a model is read from: a folder of files, or one GGUF file."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smf_jax.config import ConfigError, require

CONFIG = "config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
GENERATION_CONFIG, CHAT_TEMPLATE = "generation_config.json", "chat_template.jinja"
SPECIAL_TOKENS = "special_tokens_map.json"
# Small files that are exported again as they were imported.
CARRIED = (
    *(TOKENIZER_CONFIG, SPECIAL_TOKENS, "added_tokens.json"),
    *(GENERATION_CONFIG, CHAT_TEMPLATE),
)
# The shape and the safetensors type of each tensor.
Headers = dict[str, tuple[tuple[int, ...], str]]


class Source(NamedTuple):
    """The files of a Hugging Face model, wherever their content is from."""

    path: Path
    text: Callable[[str], str | None]  # of a small file, None if there is none
    headers: Callable[[], Headers]
    tensors: Callable[[], Iterator[tuple[str, np.ndarray]]]  # one at a time


def read_json(source: Source, name: str) -> dict[str, Any] | None:
    """Returns the object in a JSON file of a model, or None if there is no such file.

    Raises:
      ConfigError: The file holds something else.
    """
    path, text = source.path / name, source.text(name)
    if text is None:
        return None
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    require(isinstance(content, dict), f"{path}: not a JSON object")
    return content


def read_config_json(source: Source) -> dict[str, Any]:
    """Returns the `config.json` of a model, or raises `ConfigError`."""
    config = read_json(source, CONFIG)
    require(config is not None, f"{source.path / CONFIG}: no such file")
    return config


def carried_files(source: Source) -> dict[str, str]:
    """Returns the content of each existing file of `CARRIED`."""
    texts = {name: source.text(name) for name in CARRIED}
    return {name: text for name, text in texts.items() if text is not None}
