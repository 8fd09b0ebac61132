"""Models into the files of Hugging Face, read back and compared before they stand."""

import dataclasses
import shutil
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree
from safetensors.numpy import save_file

from smf_jax.config import require
from smf_jax.data.tokenizer import PAD, Tokenizer
from smf_jax.hf import files
from smf_jax.hf.adapter import ADAPTER, write_adapter
from smf_jax.hf.config import family_of, write_config
from smf_jax.hf.families import is_turned, theirs
from smf_jax.hf.load import MEMORY_TYPE, import_model
from smf_jax.model.lora import merge_lora
from smf_jax.model.transformer import Transformer
from smf_jax.tree import named

SHARD_BYTES = 2 * 2**30
Dtype = Literal["float32", "bfloat16"]


class ExportError(Exception):
    """What was written is not what should have been; nothing of it is left."""


def export_model(
    model: Transformer,
    tokenizer: Tokenizer,
    directory: str | Path,
    *,
    config: dict[str, Any] | None = None,
    carried: dict[str, str] | None = None,
    dtype: Dtype = "float32",
    ignore: Collection[str] = (),
    shard_bytes: int = SHARD_BYTES,
    base_name: str = "",
) -> None:
    """Writes a model and its tokenizer; the directory appears whole or not at all.

    What was written is read again, and must have the same parameters and give the same
    logits, bit for bit, as the model with its parameters rounded to `dtype`. A model
    without memory layers is one of its family, for any program. One with them is of a
    type of its own, which `smf_jax.torch_baseline` reads. Low-rank additions are
    merged, in place, and also written beside it as an adapter for PEFT.

    Args:
      model: What is written.
      tokenizer: Its own.
      directory: Must not exist, or be empty.
      config: The `config.json` that the model came with; by default that of the
        family which has such models.
      carried: Small files that it came with, by name.
      dtype: Of the parameters as they are written.
      ignore: Keys of `config` that were set aside when the model came.
      shard_bytes: Above this size the parameters are written to several files.
      base_name: What the adapter says it is an addition to.

    Raises:
      ConfigError: The directory holds something, or no family has such models.
      ExportError: What was written is not the model.
    """
    folder = Path(directory).absolute()
    require(
        not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
        f"{folder} exists and is not empty: choose another directory",
    )
    unknown = (carried or {}).keys() - set(files.CARRIED)
    require(not unknown, f"{sorted(unknown)} do not belong to a model")
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    beside.mkdir(parents=True)
    try:
        decoder = config or write_config(model.config)
        family = family_of(decoder)
        if write_adapter(model, family, beside / ADAPTER, base_name):
            _merge(model)
        described = _describe(model, decoder, tokenizer, dtype)
        files.write_model_json(beside / files.CONFIG, described)
        params = nnx.as_pure(nnx.state(model))
        _write_tensors(beside, params, family, dtype, shard_bytes)
        _write_tokenizer(beside, tokenizer, carried)
        _require_same(model, import_model(beside, ignore), dtype)
        if folder.exists():
            folder.rmdir()
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _describe(model, decoder, tokenizer, dtype) -> dict[str, Any]:
    key = "dtype" if "dtype" in decoder else "torch_dtype"
    decoder = decoder | {key: dtype}
    decoder.setdefault("eos_token_id", tokenizer.eos)
    memory = model.config.memory
    if memory is None:
        return decoder
    return {
        "architectures": ["SmfMemoryForCausalLM"],
        "model_type": MEMORY_TYPE,
        "decoder": decoder,
        "memory": dataclasses.asdict(memory),
    }


def _write_tensors(folder, params, family, dtype, shard_bytes) -> None:
    leaves = named(params)
    names = {ours: theirs(ours, family) for ours in leaves}
    shards, room = [[]], shard_bytes
    for ours, leaf in leaves.items():
        size = leaf.size * jnp.dtype(dtype).itemsize
        if shards[-1] and size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(ours)
        room -= size
    placed, total = {}, 0
    for number, shard in enumerate(shards, 1):
        file = files.WEIGHTS
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {names[ours]: _written(ours, leaves[ours], dtype) for ours in shard}
        save_file(tensors, folder / file, {"format": "pt"})
        placed |= dict.fromkeys(tensors, file)
        total += sum(array.nbytes for array in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        files.write_model_json(folder / files.INDEX, index)


def _written(ours: str, leaf: Array, dtype: Dtype) -> np.ndarray:
    array = np.asarray(leaf.astype(dtype))
    return np.ascontiguousarray(array.T) if is_turned(ours) else array


def _write_tokenizer(folder, tokenizer: Tokenizer, carried) -> None:
    text = tokenizer.rules.to_str(pretty=True)
    (folder / files.TOKENIZER).write_text(text, encoding="utf-8")
    if carried is None:
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": tokenizer.rules.id_to_token(tokenizer.eos),
            "pad_token": tokenizer.rules.id_to_token(PAD),
            "clean_up_tokenization_spaces": False,
        }
        files.write_model_json(folder / "tokenizer_config.json", config)
    for name, content in (carried or {}).items():
        (folder / name).write_bytes(content.encode())  # each line ends as it came


def _merge(model: Transformer) -> None:
    with jax.default_matmul_precision("highest"):
        apart = _some_logits(*nnx.split(model))
        merge_lora(model)
        merged = _some_logits(*nnx.split(model))
    error, scale = float(abs(apart - merged).max()), float(abs(apart).max())
    # The sum of a kernel and its addition is rounded; through some tens of layers that
    # comes to a few times 1e-5 of the largest logit.
    if not error <= 1e-4 * scale:
        raise ExportError(
            f"merging the low-rank additions changes logits of up to {scale:.3g} by "
            f"{error:.3g}: nothing was exported"
        )


def _require_same(model, again, dtype) -> None:
    graph, want = nnx.split(model)
    want = jax.tree.map(
        lambda leaf: leaf.astype(dtype).astype(leaf.dtype), nnx.as_pure(want)
    )
    written = named(nnx.as_pure(nnx.state(again)))
    changed = [
        name
        for name, leaf in named(want).items()
        if np.asarray(leaf).tobytes() != np.asarray(written[name]).tobytes()
    ]
    if changed:
        raise ExportError(
            f"what was written is not the model, in {', '.join(changed[:5])}: nothing "
            "was exported"
        )
    # Each by its own configuration: the one that was written must mean the same.
    want, got = _some_logits(graph, want), _some_logits(*nnx.split(again))
    if not bool((want == got).all()):
        raise ExportError(
            "what was written gives other logits than the model, by "
            f"{float(abs(want - got).max()):.3g}: nothing was exported"
        )


def _some_logits(graph: nnx.GraphDef, params: PyTree) -> Float[Array, "2 16 vocab"]:
    """Returns a model's logits for tokens that are always the same."""

    @jax.jit
    def logits(params):
        model = nnx.merge(graph, params)
        tokens = (7919 * jnp.arange(32, dtype=jnp.uint32)) % model.config.vocab_size
        return model(tokens.astype(jnp.int32).reshape(2, 16))[0]

    return logits(params)
