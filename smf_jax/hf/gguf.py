"""Reads a model from a GGUF file, as if it were a folder of Hugging Face."""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from smf_jax.config import require
from smf_jax.extras import install_command, is_installed
from smf_jax.hf.files import require_pulled
from smf_jax.hf.gguf_config import config_of
from smf_jax.hf.gguf_header import Header, Tensor, read_header
from smf_jax.hf.gguf_tokenizer import generation_config, tokenizer_config, tokenizer_of
from smf_jax.hf.names import hf_name
from smf_jax.hf.source import (
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Headers,
    Source,
)

EMBEDDING, HEAD, ROPE_FACTORS = (
    "token_embd.weight",
    "output.weight",
    "rope_freqs.weight",
)
# Our names; in layer *, without its weight or bias.
_NAMES = {
    EMBEDDING: "embedding",
    "output_norm.weight": "norm/scale",
    HEAD: "head/kernel",
}
_LAYER = {
    "attn_norm.weight": "attention_norm/scale",
    "attn_q.weight": "attention/query/kernel",
    "attn_q.bias": "attention/query/bias",
    "attn_k.weight": "attention/key/kernel",
    "attn_k.bias": "attention/key/bias",
    "attn_v.weight": "attention/value/kernel",
    "attn_v.bias": "attention/value/bias",
    "attn_output.weight": "attention/out/kernel",
    "ffn_norm.weight": "feed_forward_norm/scale",
    "ffn_gate.weight": "feed_forward/gate/kernel",
    "ffn_up.weight": "feed_forward/up/kernel",
    "ffn_down.weight": "feed_forward/down/kernel",
}
_PERMUTED = re.compile(r"blk\.\d+\.attn_([qk])\.(weight|bias)")


def open_gguf(path: Path) -> Source:
    """Returns what a GGUF file holds, as the files of a Hugging Face model.

    Quantized tensors are float32 in it.

    Raises:
      ConfigError: The package `gguf` is missing; or the file is broken, unsupported, or
        a pointer to the file.
    """
    require_pulled(path)
    require(
        is_installed("gguf"), f"reading {path} needs gguf: {install_command('gguf')}"
    )
    header = read_header(path)
    return Source(
        path,
        functools.partial(_text, path, header),
        functools.partial(_headers, header),
        functools.partial(_tensors, path, header),
    )


def _text(path: Path, header: Header, name: str) -> str | None:
    if name == CONFIG:
        content = _config(path, header)
    elif name == TOKENIZER:
        content = tokenizer_of(path, header.metadata)
    elif name == TOKENIZER_CONFIG:
        content = tokenizer_config(path, header.metadata)
    elif name == GENERATION_CONFIG:
        content = generation_config(header.metadata)
    else:
        return None
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _config(path: Path, header: Header) -> dict[str, Any]:
    embedding, factors = (header.tensors.get(n) for n in (EMBEDDING, ROPE_FACTORS))
    require(embedding is not None, f"{path} lacks {EMBEDDING}")
    read = None if factors is None else _read(path, factors)
    rows, is_tied = embedding.shape[0], HEAD not in header.tensors
    return config_of(path, header.metadata, rows, is_tied, read)


def _headers(header: Header) -> Headers:
    return {
        _hf_name(name): (tensor.shape, "F32")
        for name, tensor in header.tensors.items()
        if name != ROPE_FACTORS
    }


def _tensors(path: Path, header: Header) -> Iterator[tuple[str, np.ndarray]]:
    config = _config(path, header)
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    for name, tensor in header.tensors.items():
        if name == ROPE_FACTORS:
            continue
        array, permuted = _read(path, tensor), _PERMUTED.fullmatch(name)
        if permuted and config["model_type"] == "llama":
            array = _halves(array, heads[permuted[1]])
        yield _hf_name(name), array


def _read(path: Path, tensor: Tensor) -> np.ndarray:
    """Returns a tensor as float32."""
    import gguf

    raw = np.fromfile(path, np.uint8, tensor.num_bytes, offset=tensor.start)
    # A damaged block may overflow: numbers that are not finite are refused later.
    with np.errstate(all="ignore"):
        array = gguf.dequantize(raw, gguf.GGMLQuantizationType(tensor.type))
    return array.reshape(tensor.shape)


def _halves(array: np.ndarray, heads: int) -> np.ndarray:
    """Returns rows of queries or keys in the order of Hugging Face.

    RoPE turns a pair of rows: rows 2i and 2i + 1 of a head there, and here row i of
    each half.
    """
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def _hf_name(name: str) -> str:
    """Returns the Hugging Face name of a tensor; that of an unknown one is its own."""
    if name in _NAMES:
        return hf_name(_NAMES[name])
    layer = re.fullmatch(r"blk\.(\d{1,5})\.(.+)", name)
    if layer and layer[2] in _LAYER:
        return hf_name(f"blocks/{layer[1]}/{_LAYER[layer[2]]}")
    return name
