"""Counts how many background documents read each slot of a run's memory."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, PyTree
from rich.console import Console
from rich.progress import track

from smf_jax import multihost
from smf_jax.config import MemoryConfig, MeshConfig
from smf_jax.data.batches import Batch, pack_corpus, packed_batches
from smf_jax.runs.files import USAGE
from smf_jax.runs.layout import print_layout
from smf_jax.runs.load import corpus_of, load_run, warn_unhealed
from smf_jax.sharding import ONE_DEVICE, MeshLayout
from smf_jax.slots import document_frequency, sparse_table
from smf_jax.slots.document_frequency import Background
from smf_jax.slots.sparse_table import SlotCounts
from smf_jax.train.smf_step import count_table_reads

MAX_READ_BY_ALL = 0.5  # share of slots read by every document above which it warns


def make_read_counter(
    graph: nnx.GraphDef, memory: MemoryConfig, layout: MeshLayout = ONE_DEVICE
) -> Callable[[tuple[PyTree, ...], Batch], Int[Array, "tables num_slots"]]:
    """Returns a compiled `(params, batch) -> how often each slot was read`.

    `params` are in the parts that `graph` was split into.
    """

    @jax.jit
    def count(params, batch):
        model = nnx.merge(graph, *params)
        _, reads = model(batch.tokens, batch.positions, batch.segments)
        counts = count_table_reads(reads, batch.segments > 0, memory, layout)
        return layout.constrain(counts)  # replicated, as the host reads them

    return count


@functools.partial(jax.jit, static_argnames="graph")
def slots_of(graph: nnx.GraphDef, params: PyTree, batch: Batch) -> Array:
    """Returns the slots that each token reads of a calibrated memory, rows or not."""
    model = nnx.merge(graph, params)
    text = (batch.tokens, batch.positions, batch.segments)
    block, hidden, _ = model.memory_input(*text)
    return model.layout.constrain(block.memory.read_slots(hidden).slots)


def save_usage(
    path: Path, memory: MemoryConfig, documents: SlotCounts, **provenance: Any
) -> None:
    """Writes what documents read of a calibrated memory, as its table needs it."""
    if memory.num_rows is not None:
        sparse_table.save(path, "usage", documents, **provenance)
        return
    frequency = documents.at(np.arange(memory.num_slots, dtype=np.int32))
    background = Background(frequency[None].astype(np.int32), documents.total)
    document_frequency.save(path, background, **provenance)


def collect_usage(
    run_dir: str | Path,
    num_documents: int,
    console: Console,
    batch_size: int | None = None,
    mesh: MeshConfig | None = None,
) -> Background | SlotCounts:
    """Counts the document frequency of a run's slots, and writes it into the run.

    A document is one batch of pretraining text, drawn with another seed; it has
    `batch_size` rows, by default as many as in pretraining.
    """
    run = load_run(run_dir, mesh=mesh)
    layout = run.model.layout
    print_layout(layout, console)
    warn_unhealed(run, console)
    memory, data = run.memory, run.data
    data = dataclasses.replace(data, batch_size=batch_size or data.batch_size)
    corpus = corpus_of(run)
    packed = pack_corpus(run.tokenizer, corpus, data)
    batches = packed_batches(packed, data, run.lineage.seed + 1)
    graph, params = nnx.split(run.model)
    documents = track(
        itertools.islice(batches, num_documents),
        "usage",
        num_documents,
        console=console,
        disable=not console.is_terminal,
    )

    def put(batch):
        multihost.busy("counting reads of a document")
        return layout.shard_batch(batch)

    shape = (data.batch_size, data.seq_len)
    about = {"document_shape": shape, "model_hash": run.model_hash}
    path, about = run.run_dir / USAGE, about | {"corpus_hash": corpus.hash}
    if memory.num_rows is not None:
        slots = ((slots_of(graph, params, put(each)), each) for each in documents)
        counts = SlotCounts.of([_of_tokens(*each) for each in slots])
        if multihost.is_main():
            save_usage(path, memory, counts, **about)
        by_all = np.sum(counts.counts == counts.total) / memory.num_slots
        read = len(counts.slots) / memory.num_slots
        _print_usage(counts.total, shape, read, by_all, console)
        return counts
    count = make_read_counter(graph, memory, layout)
    reads = (count((params,), put(each)) > 0 for each in documents)
    background = document_frequency.collect(reads)
    if multihost.is_main():
        document_frequency.save(path, background, **about)
    frequency, total = background[:2]
    read, by_all = np.mean(frequency > 0), np.mean(frequency == total)
    _print_usage(total, shape, read, by_all, console)
    return background


def _of_tokens(slots: Array, batch: Batch) -> Int[np.ndarray, "tokens reads"]:
    """Returns the slots that the tokens of a batch read, without those of padding."""
    return np.asarray(slots)[: len(batch.tokens)][batch.segments > 0]


def _print_usage(
    documents: int, shape: tuple[int, int], read: float, by_all: float, console: Console
) -> None:
    rows, tokens = shape
    console.print(
        f"usage: {documents} documents of {rows} x {tokens} tokens read {read:.1%} of "
        f"the slots; every document reads {by_all:.1%}"
    )
    if by_all > MAX_READ_BY_ALL:
        console.print(
            f"WARNING: SMF never writes the {by_all:.0%} of the slots that every "
            "document reads: use smaller documents (--batch-size) or more slots "
            "(memory.num_keys)",
            style="bold red",
        )
