"""Pretraining a model from scratch, and collecting what a background reads."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import track

from smf_jax import distributed
from smf_jax.config import DataConfig, MeshConfig, PretrainConfig
from smf_jax.data.batches import (
    Packed,
    drop_long,
    encode_example,
    pack_corpus,
    packed_batches,
)
from smf_jax.data.corpus import (
    HELD_OUT_FRAME,
    Corpus,
    load_corpus,
    question_example,
)
from smf_jax.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from smf_jax.model.build import abstract_model, make_model
from smf_jax.optim.methods import make_method
from smf_jax.sharding import make_placement
from smf_jax.slots import usage
from smf_jax.slots.usage import Usage
from smf_jax.train.counts import make_read_counter
from smf_jax.train.guard import nothing_strange, skips
from smf_jax.train.record import TOKENIZER, USAGE, Made, describe
from smf_jax.train.run import (
    corpus_of,
    load_run,
    model_config,
    tell_placement,
    tell_unhealed,
)
from smf_jax.train.session import Session, train_to_end
from smf_jax.train.start import (
    AUTO,
    Resume,
    claim,
    enter_run_dir,
    find_start,
)
from smf_jax.train.state import abstract_split, restore, split_for_training
from smf_jax.train.step import make_step

CROWDED = 0.5  # share of slots that every document reads, above which it warns


def pretrain(config: PretrainConfig, console: Console, resume: Resume = AUTO) -> Path:
    """Trains a model, or goes on with it, and returns its run directory.

    Raises:
      ConfigError: The data do not fit the configuration, or the run is finished,
        damaged, or another one.
      Interrupted: A signal asked to stop, and the run was saved.
      TrainingError: Its numbers are not finite, or far off.
      SaveError: A checkpoint could not be written.
    """
    placement = make_placement(config.mesh, config.compute, config.model.memory)
    with claim(config.run_dir) as run_dir:
        start = find_start(run_dir, resume, console)
        corpus = load_corpus(config.data)
        tokenizer = _tokenizer(config.data, corpus, run_dir, start)
        packed = pack(config.data, corpus, tokenizer)
        tell_left_out(corpus, packed, console)
        # Before the work, not after it: whether the new facts can be taught at all.
        new = [question_example(fact) for fact in corpus.new]
        encoded = [encode_example(tokenizer, example, "answer") for example in new]
        drop_long(encoded, config.data.seq_len)
        made = Made(pretrain=config)
        record = describe(made, tokenizer, corpus_hash=corpus.hash)
        enter_run_dir(run_dir, start, record, tokenizer, console)
        _train(made, run_dir, start, placement, tokenizer, packed, console)
    return run_dir


def _train(made, run_dir, start, placement, tokenizer, packed, console) -> None:
    config = made.pretrain
    batches = training_batches(config.data, packed, config.seed)
    method = make_method(config.optim, config.steps, config.values_rate)
    max_skips, strange = skips(config.on_nan), nothing_strange()
    model = model_config(made, tokenizer)
    if start is None:
        graph, state, frozen = split_for_training(
            make_model(model, config.seed, placement), method
        )
    else:
        graph, state, frozen = abstract_split(abstract_model(model, placement), method)
        state, progress = restore(run_dir, start, state, max_skips)
        batches.set_state(progress["data"])
        strange = progress["strange"]
    session = Session(
        title=f"pretrain {run_dir.name}",
        run_dir=run_dir,
        config=config,
        done=start or 0,
        step=make_step(
            graph,
            model.memory,
            method,
            config.accumulate,
            config.balance,
            max_skips,
            placement,
        ),
        placement=placement,
        frozen=frozen,
        background=None,
        batches=batches,
        records=packed.records,
        vocab_size=model.vocab_size,
        strange=strange,
    )
    train_to_end(session, state, max_skips, 0, lambda step, state: ({}, {}), console)


def _tokenizer(config, corpus, run_dir, start) -> Tokenizer:
    if start is not None:
        return load_tokenizer(run_dir / TOKENIZER)
    texts = _training_texts(corpus, config)
    return train_tokenizer(texts, config.tokenizer, config.vocab_size)


def pack(config: DataConfig, corpus: Corpus, tokenizer: Tokenizer) -> Packed:
    """Returns the rows of a corpus."""
    return pack_corpus(tokenizer, corpus, config.seq_len, config.loss_on)


def tell_left_out(corpus: Corpus, packed: Packed, console: Console) -> None:
    """Prints what of the data is not trained on."""
    for note in corpus.notes:
        console.print(f"data: {note}")
    if packed.dropped:
        console.print(f"data: {packed.dropped} facts longer than a row, left out")


def training_batches(
    config: DataConfig, packed: Packed, seed: int
) -> grain.DatasetIterator:
    """Returns an iterator over batches of packed rows, without end."""
    return packed_batches(
        packed.facts, packed.texts, config.fact_share, config.batch_size, seed
    )


def _training_texts(corpus: Corpus, config: DataConfig) -> Iterator[str]:
    for example in corpus.examples:
        yield f"{example.prompt} {example.completion}"
    for text in corpus.texts:
        yield text.text
    # Words alone, not facts: a closed vocabulary must be able to spell what is new.
    for fact in corpus.new:
        yield from (fact.question, *fact.answers, *fact.statements)
    if config.facts is not None:
        yield HELD_OUT_FRAME.format(question="")


def collect_usage(
    run_dir: str | Path,
    num_documents: int,
    console: Console,
    batch_size: int | None = None,
    mesh: MeshConfig | None = None,
) -> Usage:
    """Counts in how many batches of pretraining text each slot of a run is read.

    A document is one batch of pretraining text, drawn with another seed; it has
    `batch_size` rows, by default as many as in pretraining. The result is written into
    the run directory, too.

    Raises:
      ConfigError: The run is missing or has no memory, or cannot be on the mesh.
    """
    run = load_run(run_dir, mesh=mesh)
    tell_placement(run.model.placement, console)
    tell_unhealed(run, console)
    memory, data = run.memory, run.data
    data = dataclasses.replace(data, batch_size=batch_size or data.batch_size)
    corpus = corpus_of(run)
    packed = pack(data, corpus, run.tokenizer)
    batches = training_batches(data, packed, run.made.seed + 1)
    graph, params = nnx.split(run.model)
    placement = run.model.placement
    count = make_read_counter(graph, memory, placement)
    documents = track(
        itertools.islice(batches, num_documents),
        "usage",
        num_documents,
        console=console,
        disable=not console.is_terminal,
    )

    def slots_read(batch):
        distributed.working("another document")
        return count((params,), placement.share(batch)) > 0

    collected = usage.collect(
        map(slots_read, documents),
        (data.batch_size, data.seq_len),
        run.model_hash,
        corpus.hash,
    )
    if distributed.is_main():
        usage.save(run.run_dir / USAGE, collected)
    read = np.mean(collected.document_frequency > 0)
    in_all = 1 - sum(usage.not_in_all(collected)) / collected.document_frequency.size
    console.print(
        f"usage: {num_documents} documents of {data.batch_size} x {data.seq_len} "
        f"tokens read {read:.1%} of the slots, {in_all:.1%} of them in every document"
    )
    if in_all > CROWDED:
        console.print(
            f"WARNING: SMF never writes the {in_all:.0%} of the slots that every "
            "document reads: take smaller documents (--batch-size), or a memory with "
            "more slots (memory.num_keys)",
            style="bold red",
        )
    return collected
