"""Loads models from the files of Hugging Face, or from GGUF."""

import re
from collections.abc import Collection
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from smf_jax import multihost
from smf_jax.config import MemoryConfig, ModelConfig, require
from smf_jax.hf.config import read_config
from smf_jax.hf.files import shorten
from smf_jax.hf.names import hf_name, is_transposed
from smf_jax.hf.open import open_source
from smf_jax.hf.source import CONFIG, Headers, Source, read_config_json
from smf_jax.model.build import abstract_model, assemble
from smf_jax.model.transformer import Transformer
from smf_jax.sharding import ONE_DEVICE, MeshLayout
from smf_jax.tree import named

HEAD = hf_name("head/kernel")
FLOATS, INTEGERS = ("F32", "F16", "BF16"), ("I32",)
# Buffers in old files, which follow from the configuration.
_DERIVED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def import_model(
    path: str | Path | Source,
    ignore: Collection[str] = (),
    layout: MeshLayout = ONE_DEVICE,
) -> Transformer:
    """Loads a model of a supported family, or an export with memory layers, as float32.

    Tensors are read one by one, so that host memory holds little more than the largest.
    `ignore` names keys of `config.json`.

    Raises:
      ConfigError: The configuration is unsupported; or a tensor is missing, unexpected,
        of another shape or not finite.
    """
    source = open_source(path)
    config = read_config(read_config_json(source), ignore)
    headers = source.headers()
    _require_depth(source.path, headers, config)
    abstract = abstract_model(config, layout)
    params = named(nnx.as_pure(nnx.state(abstract)))
    _require_matching(source.path, params, headers)
    loaded = _read(source, {hf_name(name): name for name in params})
    _require_slots(source.path, loaded, config.memory)
    head = loaded.pop(HEAD, None)
    require(
        head is None or np.array_equal(head, loaded["embedding"]),
        f"{source.path}: tie_word_embeddings=true, but {HEAD} is not the embedding",
    )
    return assemble(abstract, loaded)


def _require_depth(path: Path, headers: Headers, config: ModelConfig) -> None:
    # Before a model of the configured size is built.
    found = (re.match(r"model\.layers\.(\d+)\.", name) for name in headers)
    layers = {int(match[1]) for match in found if match}
    require(
        len(layers) == config.num_layers == max(layers, default=-1) + 1,
        f"{path} holds {len(layers)} layers, but {CONFIG} says {config.num_layers}",
    )


def _require_matching(
    path: Path, params: dict[str, jax.ShapeDtypeStruct], headers: Headers
) -> None:
    """Raises `ConfigError`, which lists all faults, unless the tensors are expected."""
    expected = {
        hf_name(name): leaf.shape[::-1] if is_transposed(name) else leaf.shape
        for name, leaf in params.items()
    }
    wrong = [f"{name} is missing" for name in expected.keys() - headers.keys()]
    integers = {hf_name(n) for n, leaf in params.items() if leaf.dtype == np.int32}
    for name, (shape, dtype) in headers.items():
        types = INTEGERS if name in integers else FLOATS
        if dtype not in types:
            wrong.append(f"{name} is {dtype}, not one of {', '.join(types)}")
        elif name in expected and shape != expected[name]:
            want = list(expected[name])
            wrong.append(f"{name} is {list(shape)}, but {CONFIG} says {want}")
        elif name not in expected and not (name == HEAD or _DERIVED.fullmatch(name)):
            wrong.append(f"{name} is unexpected")
    listed = shorten(wrong, "; ")
    require(not wrong, f"{path}: tensors do not match {CONFIG}: {listed}")


def _require_slots(
    path: Path, loaded: dict[str, Array], memory: MemoryConfig | None
) -> None:
    """Raises `ConfigError` unless the slots of a calibrated memory's rows rise."""
    if memory is None or memory.num_rows is None:
        return
    name = f"blocks/{memory.layers[0]}/memory/slots"
    used, unused = np.split(np.asarray(loaded[name]), [memory.num_rows])
    is_rising = (np.diff(used, prepend=-1, append=memory.num_slots) > 0).all()
    require(
        bool(is_rising) and bool((unused == memory.num_slots).all()),
        f"{path}: {hf_name(name)} does not name {memory.num_rows} slots in order, then "
        f"{memory.num_slots} for each row that is not used",
    )


def _read(source: Source, names: dict[str, str]) -> dict[str, Array]:
    """Returns every parameter by our name; the head of a tied model by its own."""
    loaded = {}
    for tensor_name, array in source.tensors():
        multihost.busy(f"reading {tensor_name}")
        if _DERIVED.fullmatch(tensor_name):
            continue
        if array.dtype != np.int32:
            array = array.astype(np.float32)
        require(
            bool(np.isfinite(array).all()),
            f"{source.path}: {tensor_name} holds numbers that are not finite",
        )
        name = names.get(tensor_name, tensor_name)
        loaded[name] = jax.device_put(array.T if is_transposed(name) else array)
    return loaded
