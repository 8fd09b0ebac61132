"""The document frequency of slots in a background corpus, and its file."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from smf_jax.config import require
from smf_jax.slots import tensor_file


class Background(NamedTuple):
    """The background of slot selection; a document is one background batch.

    `contrastive` selection also needs to know the taught facts.
    """

    document_frequency: Int[Array | np.ndarray, "tables num_slots"]
    num_documents: int | Int[Array, ""]
    # how many of the taught facts read each slot
    fact_frequency: Int[Array | np.ndarray, "tables num_slots"] | None = None
    num_facts: int | Int[Array, ""] | None = None


# Of each field, for `jax.vmap` over tables
BACKGROUND_AXES = (0, None, 0, None)


def collect(documents: Iterable[Bool[Array, "tables num_slots"]]) -> Background:
    """Returns the document frequency over `documents`, given the slots each one read.

    Raises:
      ConfigError: There is no document.
    """
    total, num_documents = 0, 0
    for read in documents:
        total = total + read.astype(jnp.int32)
        num_documents += 1
    require(num_documents > 0, "no background document: the corpus is empty")
    return Background(np.asarray(total), num_documents)


def selectable_slots(background: Background) -> list[int]:
    """Returns how many slots of each table TF-IDF can select.

    The inverse document frequency of a slot that every document reads is 0.
    """
    below = background.document_frequency < background.num_documents
    return below.sum(axis=1).tolist()


def save(path: Path, background: Background, **provenance: Any) -> None:
    """Writes a background and which model read which documents, atomically."""
    arrays = {"document_frequency": background.document_frequency}
    metadata = {"num_documents": background.num_documents, **provenance}
    tensor_file.save(path, "usage", arrays, metadata)


def content_hash(background: Background) -> str:
    """Returns the SHA-256 of the counts."""
    frequency = np.ascontiguousarray(background.document_frequency, "<i4")
    header = repr((frequency.shape, background.num_documents)).encode()
    return hashlib.sha256(header + frequency.tobytes()).hexdigest()


def load(path: Path, model_hash: str, num_tables: int, num_slots: int) -> Background:
    """Reads the background of one model.

    Raises:
      ConfigError: The file is missing or damaged, or belongs to another model.
    """
    missing = f"{path} does not exist: run `smf usage {path.parent}` first"
    require(path.is_file(), missing)
    arrays, metadata = tensor_file.load(path, "usage")
    frequency = arrays.get("document_frequency")
    require(
        frequency is not None
        and frequency.dtype == np.int32
        and {"num_documents", "model_hash"} <= metadata.keys(),
        f"{path} is not a usage file: run `smf usage` again",
    )
    require(
        frequency.shape == (num_tables, num_slots),
        f"{path} counts tables of shape {frequency.shape}, but the model's are "
        f"{(num_tables, num_slots)}: run `smf usage` again",
    )
    require(
        metadata["model_hash"] == model_hash,
        f"{path} was collected with model {metadata['model_hash']}, not {model_hash}: "
        "run `smf usage` again",
    )
    return Background(frequency, metadata["num_documents"])
