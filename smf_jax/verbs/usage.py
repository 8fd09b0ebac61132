"""Counts how many background documents read each slot of a run's memory."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

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
from smf_jax.slots import document_frequency
from smf_jax.slots.document_frequency import Background
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


def collect_usage(
    run_dir: str | Path,
    num_documents: int,
    console: Console,
    batch_size: int | None = None,
    mesh: MeshConfig | None = None,
) -> Background:
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
    count = make_read_counter(graph, memory, layout)
    documents = track(
        itertools.islice(batches, num_documents),
        "usage",
        num_documents,
        console=console,
        disable=not console.is_terminal,
    )

    def slots_read(batch):
        multihost.busy("counting reads of a document")
        return count((params,), layout.shard_batch(batch)) > 0

    background = document_frequency.collect(map(slots_read, documents))
    if multihost.is_main():
        document_frequency.save(
            run.run_dir / USAGE,
            background,
            document_shape=(data.batch_size, data.seq_len),
            model_hash=run.model_hash,
            corpus_hash=corpus.hash,
        )
    _print_usage(background, data.batch_size, data.seq_len, console)
    return background


def _print_usage(
    background: Background, batch_size: int, seq_len: int, console: Console
) -> None:
    frequency = background.document_frequency
    read = np.mean(frequency > 0)
    selectable = sum(document_frequency.selectable_slots(background))
    in_all = 1 - selectable / frequency.size
    console.print(
        f"usage: {background.num_documents} documents of {batch_size} x {seq_len} "
        f"tokens read {read:.1%} of the slots; every document reads {in_all:.1%}"
    )
    if in_all > MAX_READ_BY_ALL:
        console.print(
            f"WARNING: SMF never writes the {in_all:.0%} of the slots that every "
            "document reads: use smaller documents (--batch-size) or more slots "
            "(memory.num_keys)",
            style="bold red",
        )
