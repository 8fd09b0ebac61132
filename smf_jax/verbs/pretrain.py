"""Pretrains a model from scratch."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from smf_jax.config import DataConfig, PretrainConfig
from smf_jax.data.batches import (
    Packed,
    drop_long,
    encode_example,
    pack_corpus,
    packed_batches,
)
from smf_jax.data.corpus import Corpus, load_corpus
from smf_jax.data.examples import HELD_OUT_FRAME, taught_examples
from smf_jax.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from smf_jax.model.build import abstract_model, make_model
from smf_jax.optim.methods import make_method
from smf_jax.runs import AUTO, Resume, open_run
from smf_jax.runs.files import TOKENIZER
from smf_jax.runs.load import model_config
from smf_jax.runs.record import Lineage, describe
from smf_jax.sharding import make_layout
from smf_jax.train.fit import fit, prepare


def pretrain(config: PretrainConfig, console: Console, resume: Resume = AUTO) -> Path:
    """Trains a model, or resumes its training, and returns the run directory.

    Raises:
      ConfigError: The data do not fit the configuration, or the run directory holds a
        damaged or different run.
      Interrupted, TrainingError, SaveError: As `fit` does.
    """
    layout = make_layout(config.mesh, config.compute, config.model.memory)
    with open_run(config.run_dir, console, resume) as run:
        corpus = load_corpus(config.data)
        if run.start is None:
            texts = _training_texts(corpus, config.data)
            kind, size = config.data.tokenizer, config.data.vocab_size
            tokenizer = train_tokenizer(texts, kind, size)
        else:
            tokenizer = load_tokenizer(run.run_dir / TOKENIZER)
        packed = pack_corpus(tokenizer, corpus, config.data)
        print_left_out(corpus, packed, console)
        _require_teachable(corpus, tokenizer, config.data.seq_len)
        lineage = Lineage(pretrain=config)
        run.begin(describe(lineage, tokenizer, corpus_hash=corpus.hash), tokenizer)
        if run.start == config.steps:
            return run.run_dir

        model_shape = model_config(lineage, tokenizer)
        if run.start is None:
            model = make_model(model_shape, config.seed, layout)
        else:
            model = abstract_model(model_shape, layout)
        method = make_method(config.optim, config.steps, config.values_lr_scale)
        training = prepare(run, config, model, method, config.balance_weight)
        batches = packed_batches(packed, config.data, config.seed)
        for _ in fit(run, config, training, batches, packed.records):
            pass  # nothing to evaluate
    return run.run_dir


def print_left_out(corpus: Corpus, packed: Packed, console: Console) -> None:
    """Prints which data is not trained on."""
    for note in corpus.notes:
        console.print(f"data: {note}")
    if packed.dropped:
        console.print(f"data: {packed.dropped} facts longer than a row, left out")


def _require_teachable(corpus: Corpus, tokenizer: Tokenizer, seq_len: int) -> None:
    """Raises `ConfigError` before pretraining if the new facts could not be taught."""
    examples = [e for fact in corpus.new for e in taught_examples(fact, "questions")]
    drop_long([encode_example(tokenizer, each, "answer") for each in examples], seq_len)


def _training_texts(corpus: Corpus, config: DataConfig) -> Iterator[str]:
    for example in corpus.examples:
        yield f"{example.prompt} {example.completion}"
    for text in corpus.texts:
        yield text.text
    if config.tokenizer == "bpe":  # spells any word, and must not know new facts
        return
    # Words alone, not facts: a closed vocabulary must be able to spell what is new.
    for fact in corpus.new:
        yield from (fact.question, *fact.answers, *fact.statements, *fact.wordings)
        if config.facts is not None:  # a world's are of the words of its questions
            yield from fact.held_out
    if config.facts is not None:
        yield HELD_OUT_FRAME.format(question="")
