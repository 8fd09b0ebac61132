"""How often a background corpus reads each slot, and the file that remembers it."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from smf_jax.config import ConfigError, require
from smf_jax.whole import write_whole


class Usage(NamedTuple):
    """Document frequency of every slot; a document is one batch of background text."""

    document_frequency: Int[np.ndarray, "pools num_slots"]
    num_documents: int
    document_shape: tuple[int, int]  # sequences x tokens of one document
    model_hash: str  # of the parameters that read
    corpus_hash: str  # of the text that was read


def collect(
    documents: Iterable[Bool[Array, "pools num_slots"]],
    document_shape: tuple[int, int],
    model_hash: str,
    corpus_hash: str,
) -> Usage:
    """Returns the document frequency over `documents`, given what each one read."""
    total, num_documents = 0, 0
    for read in documents:
        total = total + read.astype(jnp.int32)
        num_documents += 1
    require(num_documents > 0, "no background document: the corpus is empty")
    return Usage(
        np.asarray(total), num_documents, document_shape, model_hash, corpus_hash
    )


def not_in_all(usage: Usage) -> list[int]:
    """Returns how many slots of each table some document does not read.

    Of the others nothing can stand out: their inverse document frequency is 0.
    """
    return (usage.document_frequency < usage.num_documents).sum(axis=1).tolist()


def save(path: Path, usage: Usage) -> None:
    """Writes `usage` as safetensors; the file appears whole or not at all."""
    metadata = {
        "num_documents": usage.num_documents,
        "document_shape": usage.document_shape,
        "model_hash": usage.model_hash,
        "corpus_hash": usage.corpus_hash,
        "content_hash": content_hash(usage),
    }
    tensors = {"document_frequency": usage.document_frequency}
    write_whole(path, serialize(tensors, {"usage": json.dumps(metadata)}))


def content_hash(usage: Usage) -> str:
    """Returns the SHA-256 of everything that a usage says."""
    digest = hashlib.sha256(repr(tuple(usage)[1:]).encode())
    frequency = np.ascontiguousarray(usage.document_frequency, "<i4")
    digest.update(repr(frequency.shape).encode() + frequency.tobytes())
    return digest.hexdigest()


def load(path: Path, model_hash: str, num_pools: int, num_slots: int) -> Usage:
    """Reads the usage of one model.

    Raises:
      ConfigError: There is none, it is damaged, or another model or table read it.
    """
    require(
        path.is_file(), f"{path} does not exist: run `smf usage {path.parent}` first"
    )
    try:
        with safe_open(path, framework="np") as file:
            frequency = file.get_tensor("document_frequency")
            metadata = json.loads(file.metadata()["usage"])
            usage = Usage(
                frequency,
                metadata["num_documents"],
                tuple(metadata["document_shape"]),
                metadata["model_hash"],
                metadata["corpus_hash"],
            )
            whole = (
                frequency.dtype == np.int32
                and content_hash(usage) == metadata["content_hash"]
            )
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise ConfigError(f"{path} is no usage file: {error}") from error
    require(
        whole, f"{path} is damaged: it is not as it was written; collect usage again"
    )
    require(
        usage.document_frequency.shape == (num_pools, num_slots),
        f"{path} counts tables of shape {usage.document_frequency.shape}, but the "
        f"model's are {(num_pools, num_slots)}: collect usage again",
    )
    require(
        usage.model_hash == model_hash,
        f"{path} was collected from model {usage.model_hash}, not {model_hash}: "
        "collect usage again",
    )
    return usage
