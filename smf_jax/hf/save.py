"""Exports models for Hugging Face; each export is read back and compared."""

import dataclasses
import functools
import shutil
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree
from safetensors.numpy import save_file

from smf_jax.config import require
from smf_jax.data.tokenizer import PAD, Tokenizer
from smf_jax.hf import files, source
from smf_jax.hf.config import MEMORY_TYPE, write_config
from smf_jax.hf.load import import_model
from smf_jax.hf.names import hf_name, is_transposed
from smf_jax.model.lora import LoRALinear, merge_lora
from smf_jax.model.transformer import Transformer
from smf_jax.tree import named

ADAPTER = "adapter"  # subdirectory
SHARD_BYTES = 2 * 2**30  # largest size of a safetensors file
Dtype = Literal["float32", "bfloat16"]


class ExportError(Exception):
    """What was written differs from the model; nothing of it is left."""


def export_model(
    model: Transformer,
    tokenizer: Tokenizer,
    directory: str | Path,
    *,
    config: dict[str, Any] | None = None,
    carried: dict[str, str] | None = None,
    dtype: Dtype = "float32",
    ignore: Collection[str] = (),
    base_name: str = "",
    base_revision: str | None = None,
) -> None:
    """Writes a model and its tokenizer to a directory, completely or not at all.

    What was written is read back, and must have the same parameters and logits, bit for
    bit, as the model with its parameters rounded to `dtype`. With memory layers it is
    of a model type of its own, which `smf_jax.torch_baseline` loads. LoRA weights are
    merged, in place, and also written as an adapter for PEFT.

    Args:
      config: The `config.json` it was imported with; by default one is made.
      carried: Content of the small files it was imported with, by name.
      ignore: Keys of `config` that were ignored at import.
      base_name: Name or path of the model without LoRA.
      base_revision: Its commit, if it is of a repository.

    Raises:
      ConfigError: The directory is not empty, or no supported family has such a model.
      ExportError: What was written differs from the model.
    """
    folder = Path(directory).absolute()
    require(
        not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
        f"{folder} exists and is not empty: choose another directory",
    )
    unknown = (carried or {}).keys() - set(source.CARRIED)
    require(not unknown, f"{sorted(unknown)} are not files of a model")
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    try:
        if _write_adapter(model, partial / ADAPTER, base_name, base_revision):
            _merge(model)
        described = _describe(model, config, tokenizer, dtype)
        files.write_model_json(partial / source.CONFIG, described)
        _write_tensors(partial, model, dtype)
        _write_tokenizer(partial, tokenizer, carried)
        # safetensors writes files that only their owner can read.
        mode = (partial / source.CONFIG).stat().st_mode
        for path in partial.rglob("*.safetensors"):
            path.chmod(mode)
        _require_same(model, import_model(partial, ignore), dtype)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_adapter(
    model: Transformer, folder: Path, base_name: str, base_revision: str | None
) -> bool:
    """Writes the LoRA weights of a model for PEFT, and returns whether it has any."""
    tensors, targets = {}, []
    for path, module in nnx.iter_modules(model):
        if not isinstance(module, LoRALinear):
            continue
        name = "/".join(map(str, path)) + "/kernel"
        targets.append(hf_name(name).removesuffix(".weight"))
        for part, factor in (("lora_A", module.down), ("lora_B", module.up)):
            array = np.ascontiguousarray(np.asarray(factor[...]).T)
            tensors[f"base_model.model.{targets[-1]}.{part}.weight"] = array
        rank, scale = module.down.shape[1], module.scale
    if not targets:
        return False
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": base_revision,
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    files.write_model_json(folder / "adapter_config.json", config)
    return True


def _merge(model: Transformer) -> None:
    with jax.default_matmul_precision("highest"):
        before = _sample_logits(*nnx.split(model))
        merge_lora(model)
        after = _sample_logits(*nnx.split(model))
    error, scale = float(abs(before - after).max()), float(abs(before).max())
    # Each merged kernel is rounded; tens of layers later that may come to a few times
    # 1e-5 of the largest logit.
    if not error <= 1e-4 * scale:
        raise ExportError(
            f"merging LoRA changes logits of up to {scale:.3g} by {error:.3g}: nothing "
            "was exported"
        )


def _describe(model, config, tokenizer, dtype) -> dict[str, Any]:
    decoder = config or write_config(model.config)
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


def _write_tensors(folder: Path, model: Transformer, dtype: Dtype) -> None:
    params = named(nnx.as_pure(nnx.state(model)))
    params = {hf_name(name): (name, leaf) for name, leaf in params.items()}
    split = huggingface_hub.split_state_dict_into_shards_factory(
        params,
        get_storage_size=lambda param: param[1].size * _type(param[1], dtype).itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    for file, names in split.filename_to_tensors.items():
        tensors = {name: _to_numpy(*params[name], dtype) for name in names}
        save_file(tensors, folder / file, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        files.write_model_json(folder / files.INDEX, index)


def _type(leaf: Array, dtype: Dtype) -> np.dtype:
    """Returns the type that an array is written in; integers stay what they are."""
    return jnp.dtype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype


def _to_numpy(name: str, leaf: Array, dtype: Dtype) -> np.ndarray:
    array = np.asarray(leaf.astype(_type(leaf, dtype)))
    return np.ascontiguousarray(array.T) if is_transposed(name) else array


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, carried) -> None:
    # As it came: older versions of the library cannot read what newer ones write.
    (folder / source.TOKENIZER).write_bytes(tokenizer.json.encode())
    if carried is None:
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": tokenizer.rules.id_to_token(tokenizer.eos),
            "pad_token": tokenizer.rules.id_to_token(PAD),
            "clean_up_tokenization_spaces": False,
        }
        files.write_model_json(folder / source.TOKENIZER_CONFIG, config)
    for name, content in (carried or {}).items():
        (folder / name).write_bytes(content.encode())  # line endings as they were


def _require_same(model: Transformer, exported: Transformer, dtype: Dtype) -> None:
    graph, params = nnx.split(model)
    rounded = jax.tree.map(
        lambda leaf: leaf.astype(_type(leaf, dtype)).astype(leaf.dtype),
        nnx.as_pure(params),
    )
    exported_graph, written = nnx.split(exported)
    written = nnx.as_pure(written)
    leaves = named(written)
    changed = [
        name
        for name, leaf in named(rounded).items()
        if np.asarray(leaf).tobytes() != np.asarray(leaves[name]).tobytes()
    ]
    if changed:
        raise ExportError(
            f"exported parameters differ from the model's: {files.shorten(changed)}: "
            "nothing was exported"
        )
    # Each with its own configuration: the exported one must mean the same.
    want = _sample_logits(graph, rounded)
    got = _sample_logits(exported_graph, written)
    if not bool((want == got).all()):
        error = float(abs(want - got).max())
        raise ExportError(
            f"exported logits differ from the model's by {error:.3g}: nothing was "
            "exported"
        )


@functools.partial(jax.jit, static_argnums=0)
def _sample_logits(graph: nnx.GraphDef, params: PyTree) -> Float[Array, "2 16 vocab"]:
    """Returns a model's logits for 32 fixed tokens."""
    model = nnx.merge(graph, params)
    tokens = (7919 * jnp.arange(32, dtype=jnp.uint32)) % model.config.vocab_size
    return model(tokens.astype(jnp.int32).reshape(2, 16))[0]
