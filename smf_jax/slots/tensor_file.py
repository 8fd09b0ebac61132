"""Safetensors files of arrays and metadata with a checksum of both."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from smf_jax.atomic import write_atomic
from smf_jax.config import ConfigError, require

Arrays = dict[str, np.ndarray]


def save(path: Path, kind: str, arrays: Arrays, metadata: dict[str, Any]) -> None:
    """Writes a file of some kind, atomically."""
    text = json.dumps(metadata)
    texts = {kind: text, "sha256": _checksum(text, arrays)}
    write_atomic(path, serialize(arrays, texts))


def load(path: Path, kind: str) -> tuple[Arrays, dict[str, Any]]:
    """Reads the arrays and the metadata of a file.

    Raises:
      ConfigError: The file is missing, damaged or of another kind.
    """
    require(path.is_file(), f"{path} does not exist")
    try:
        with safe_open(path, framework="np") as file:
            names, texts = file.keys(), file.metadata()
            text, checksum = texts[kind], texts["sha256"]
            arrays = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise ConfigError(f"{path} is not a {kind} file: {error}") from error
    require(_checksum(text, arrays) == checksum, f"{path} is damaged: wrong checksum")
    return arrays, json.loads(text)


def _checksum(text: str, arrays: Arrays) -> str:
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
