"""Pretraining a model from scratch, and collecting what a background reads."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer

from smf_jax import checkpoint
from smf_jax.config import DataConfig, PretrainConfig, require
from smf_jax.data.batches import (
    Batch,
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
from smf_jax.data.tokenizer import train_tokenizer
from smf_jax.optim.methods import Method, make_method
from smf_jax.slots import usage
from smf_jax.slots.usage import Usage
from smf_jax.train.loop import metrics_log, train
from smf_jax.train.run import (
    METRICS,
    USAGE,
    Run,
    all_params,
    create_run_dir,
    load_run,
    make_model,
    require_free,
)
from smf_jax.train.step import TrainState, make_document_reader, make_step


def pretrain(config: PretrainConfig, console: Console) -> Path:
    """Trains a model and returns its run directory.

    Raises:
      ConfigError: The data do not fit the configuration, or the run exists.
    """
    require_free(config.run_dir)
    corpus = load_corpus(config.data)
    for note in corpus.notes:
        console.print(f"data: {note}")
    tokenizer = train_tokenizer(
        _training_texts(corpus, config.data),
        config.data.tokenizer,
        config.data.vocab_size,
    )
    packed = _pack(config.data, corpus, tokenizer)
    if packed.dropped:
        console.print(f"data: {packed.dropped} facts longer than a row, left out")
    # Before the work, not after it: whether the new facts can be taught at all.
    new = [question_example(fact) for fact in corpus.new]
    encoded = [encode_example(tokenizer, example, "answer") for example in new]
    drop_long(encoded, config.data.seq_len)
    batches = _batches(config.data, packed, config.seed)
    run_dir = create_run_dir(config.run_dir, config, None, tokenizer, corpus.hash)

    method = make_method(config.optim, config.steps, config.values_rate)
    graph, state, frozen = split_for_training(
        make_model(config, None, tokenizer), method
    )
    step = make_step(
        graph, config.model.memory, method, accumulate=1, balance=config.balance
    )
    title = f"pretrain {run_dir.name}"
    log = metrics_log(run_dir / METRICS, title, config.steps, config.log_every, console)
    steps = range(1, config.steps + 1)
    with log as log:
        state = train(step, state, frozen, None, batches, steps, log)
    model = nnx.merge(graph, state.trainable, frozen)
    checkpoint.save(run_dir, config.steps, all_params(model))
    return run_dir


def _pack(config: DataConfig, corpus: Corpus, tokenizer: Tokenizer) -> Packed:
    return pack_corpus(tokenizer, corpus, config.seq_len, config.loss_on)


def _batches(config: DataConfig, packed: Packed, seed: int) -> Iterator[Batch]:
    return packed_batches(
        packed.facts, packed.texts, config.fact_share, config.batch_size, seed
    )


def _training_texts(corpus: Corpus, config: DataConfig) -> Iterator[str]:
    for prompt, completion in corpus.examples:
        yield f"{prompt} {completion}"
    for text in corpus.texts:
        yield text.text
    # Words alone, not facts: a closed vocabulary must be able to spell what is new.
    for fact in corpus.new:
        yield from (fact.question, *fact.answers, *fact.statements)
    if config.facts is not None:
        yield HELD_OUT_FRAME.format(question="")


def split_for_training(
    model: nnx.Module, method: Method
) -> tuple[nnx.GraphDef, TrainState, PyTree]:
    """Returns a model's structure, what trains with its optimizer state, and the rest.

    What trains is copied, since a step donates it and the model may be needed again.
    """
    graph, trainable, frozen = nnx.split(model, method.trainable, ...)
    trainable = jax.tree.map(jnp.copy, nnx.as_pure(trainable))
    state = TrainState(trainable, jax.jit(method.tx.init)(trainable))
    device = jax.local_devices()[0]
    return graph, *jax.device_put((state, nnx.as_pure(frozen)), device)


def collect_usage(run_dir: str | Path, num_documents: int, console: Console) -> Usage:
    """Counts in how many batches of pretraining text each slot of a run is read.

    A document is one batch of the shape of pretraining, drawn with another seed.
    The result is written into the run directory, too.

    Raises:
      ConfigError: The run is missing or has no memory.
    """
    run = load_run(run_dir)
    memory = require_memory(run)
    corpus = load_corpus(run.pretrain.data)
    data = run.pretrain.data
    packed = _pack(data, corpus, run.tokenizer)
    batches = _batches(data, packed, run.pretrain.seed + 1)
    graph, params = nnx.split(run.model)
    read = make_document_reader(graph, memory)
    documents = track(
        itertools.islice(batches, num_documents),
        "usage",
        num_documents,
        console=console,
        disable=not console.is_terminal,
    )
    collected = usage.collect(
        (read(params, batch) for batch in documents),
        (data.batch_size, data.seq_len),
        run.model_hash,
        corpus.hash,
    )
    usage.save(run.run_dir / USAGE, collected)
    read_often = np.mean(collected.document_frequency > 0)
    console.print(
        f"usage: {num_documents} documents of {data.batch_size} x {data.seq_len} "
        f"tokens read {read_often:.1%} of the slots"
    )
    return collected


def require_memory(run: Run):
    """Returns the configuration of a run's memory layers.

    Raises:
      ConfigError: It has none.
    """
    memory = run.pretrain.model.memory
    require(memory is not None, f"{run.run_dir}: the model has no memory layers")
    return memory
