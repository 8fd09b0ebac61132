"""Models and tokenizers from the files of Hugging Face."""

import dataclasses
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import dacite
import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from smf_jax import multihost
from smf_jax.config import ConfigError, MemoryConfig, ModelConfig, require
from smf_jax.data.tokenizer import Tokenizer, load_tokenizer
from smf_jax.hf import files
from smf_jax.hf.config import read_config
from smf_jax.hf.families import Family, is_turned, theirs
from smf_jax.model.build import abstract_model, assemble
from smf_jax.model.transformer import Transformer
from smf_jax.tree import named

# Of a model with memory layers, so that no program takes it for one without.
MEMORY_TYPE = "smf_memory"
HEAD = "lm_head.weight"
SHOWN = 5  # mistakes that a message lists
# Buffers in old files, which follow from the configuration.
_DERIVED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def import_model(directory: str | Path, ignore: Collection[str] = ()) -> Transformer:
    """Reads a model of a family that we know, with memory layers if we wrote it.

    Parameters are float32. Tensors are read and placed one by one, so that beside the
    model hardly more than its largest tensor is in memory.

    Args:
      directory: Holds `config.json` and safetensors.
      ignore: Keys of `config.json` that are set aside.

    Raises:
      ConfigError: It is no such model; a tensor is missing, left over, of another
        shape or not finite; or the configuration asks for what we do not have.
    """
    folder = Path(directory)
    require(folder.is_dir(), f"{folder}: no such directory")
    family, config = describe(files.read_model_json(folder, files.CONFIG), ignore)
    headers = files.headers(folder)
    _require_depth(folder, headers, config)
    abstract = abstract_model(config)
    params = named(nnx.as_pure(nnx.state(abstract)))
    names = {ours: theirs(ours, family) for ours in params}
    _require_matching(folder, names, params, headers)
    loaded = _read(folder, {name: ours for ours, name in names.items()})
    head = loaded.pop(HEAD, None)
    require(
        head is None or np.array_equal(head, loaded["embedding"]),
        f"{folder}: tie_word_embeddings=true, but {HEAD} is not the embedding",
    )
    return assemble(abstract, loaded)


def describe(
    config: dict[str, Any], ignore: Collection[str] = ()
) -> tuple[Family, ModelConfig]:
    """Returns what `read_config` does, also of a model that we wrote with its memory.

    Raises:
      ConfigError: As there.
    """
    decoder, memory = split_config(config)
    family, model = read_config(decoder, ignore)
    try:
        return family, dataclasses.replace(model, memory=memory)
    except ConfigError as error:
        raise ConfigError(f"config.json: {error}") from error


def split_config(config: dict[str, Any]) -> tuple[dict[str, Any], MemoryConfig | None]:
    """Returns what a `config.json` says of the decoder, and of the memory, if any.

    Raises:
      ConfigError: The memory is described wrongly.
    """
    if config.get("model_type") != MEMORY_TYPE:
        return config, None
    try:
        rules = dacite.Config(strict=True, cast=[tuple])
        memory = dacite.from_dict(MemoryConfig, config["memory"], rules)
        return dict(config["decoder"]), memory
    except (
        *(dacite.DaciteError, LookupError, TypeError, ValueError, AttributeError),
    ) as error:
        raise ConfigError(f"config.json of a memory is broken: {error}") from error


def _require_matching(
    folder: Path,
    names: dict[str, str],
    params: dict[str, jax.ShapeDtypeStruct],
    headers: dict[str, files.Header],
) -> None:
    """Raises `ConfigError`, which lists all, unless the files hold what is expected."""
    expected = {}
    for ours, leaf in params.items():
        shape = leaf.shape[::-1] if is_turned(ours) else leaf.shape
        expected[names[ours]] = shape
    wrong = [f"{name} is missing" for name in expected.keys() - headers.keys()]
    for name, (shape, dtype) in headers.items():
        if dtype not in files.FLOATS:
            wrong.append(f"{name} is {dtype}, not one of {', '.join(files.FLOATS)}")
        elif name in expected and shape != expected[name]:
            wrong.append(
                f"{name} is {list(shape)}, but {files.CONFIG} makes it "
                f"{list(expected[name])}"
            )
        elif name not in expected and not (name == HEAD or _DERIVED.fullmatch(name)):
            wrong.append(f"{name} belongs to nothing")
    shown = "; ".join(sorted(wrong)[:SHOWN])
    more = f"; and {len(wrong) - SHOWN} more" if wrong[SHOWN:] else ""
    require(not wrong, f"{folder} does not hold its model: {shown}{more}")


def _require_depth(folder: Path, headers, config: ModelConfig) -> None:
    # Before anything of the size that is claimed is made.
    found = (re.match(r"model\.layers\.(\d+)\.", name) for name in headers)
    layers = {int(match[1]) for match in found if match}
    require(
        len(layers) == config.num_layers == max(layers, default=-1) + 1,
        f"{folder} holds {len(layers)} layers, but {files.CONFIG} says "
        f"{config.num_layers}",
    )


def _read(folder: Path, ours: dict[str, str]) -> dict[str, Array]:
    """Returns every parameter, placed, by our names; a head that is tied by its own."""
    loaded = {}
    for name, array in files.tensors(folder):
        multihost.busy(f"read {name}")
        if _DERIVED.fullmatch(name):
            continue
        array = array.astype(np.float32)
        require(
            bool(np.isfinite(array).all()),
            f"{folder}: {name} holds numbers that are not finite",
        )
        mine = ours.get(name, name)
        loaded[mine] = jax.device_put(array.T if is_turned(mine) else array)
    return loaded


def read_tokenizer(directory: str | Path) -> Tokenizer:
    """Reads the tokenizer of a model, and which token ends its texts.

    The end is the `eos_token` of `tokenizer_config.json`, or else the (first)
    `eos_token_id` of `config.json`. What stands before a text is what the rules of
    `tokenizer.json` put there.

    Raises:
      ConfigError: There is no `tokenizer.json`, it is broken, or nothing names an end.
    """
    folder = Path(directory)
    require(
        (folder / files.TOKENIZER).is_file(),
        f"{folder} holds no {files.TOKENIZER}: save its tokenizer with transformers, "
        "whose save_pretrained writes one",
    )
    end = None
    if (folder / "tokenizer_config.json").is_file():
        token = files.read_model_json(folder, "tokenizer_config.json").get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        end = token if isinstance(token, str) and token else None
    if end is None:
        end = files.read_model_json(folder, files.CONFIG).get("eos_token_id")
        end = end[0] if isinstance(end, list) and end else end
        end = end if type(end) is int else None
    require(
        end is not None,
        f"{folder}: neither tokenizer_config.json nor config.json names the token "
        "that ends a text",
    )
    return load_tokenizer(folder / files.TOKENIZER, end)
