"""Teaching new facts to a run's model, by any method, with a curve of what it cost."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from smf_jax import checkpoint
from smf_jax.config import FinetuneConfig, require
from smf_jax.data.batches import (
    Batch,
    drop_long,
    encode_example,
    fits,
    taught_batches,
)
from smf_jax.data.corpus import taught_examples
from smf_jax.evaluate.forgetting import CurvePoint
from smf_jax.model.lora import add_lora
from smf_jax.optim.methods import Method, make_method
from smf_jax.slots import usage
from smf_jax.slots.usage import Usage
from smf_jax.train.loop import metrics_log, train
from smf_jax.train.pretrain import require_memory, split_for_training
from smf_jax.train.questions import (
    Point,
    Questions,
    ask_all,
    load_questions,
    write_evaluation,
)
from smf_jax.train.run import (
    METRICS,
    TEACHING,
    USAGE,
    Run,
    all_params,
    create_run_dir,
    load_run,
    require_free,
    write_json,
)
from smf_jax.train.step import Background, TrainState, make_step


class Finetuned(NamedTuple):
    """What teaching did."""

    run_dir: Path
    points: list[Point]  # the first is before any step, the last after all
    trainable: int  # numbers that one step may change

    def curve(self) -> list[CurvePoint]:
        """Returns what was learned and kept at each point."""
        return [point.on_curve() for point in self.points]


def finetune(config: FinetuneConfig, console: Console) -> Finetuned:
    """Teaches facts to the model of `config.base` and writes a run.

    Raises:
      ConfigError: The base or its usage is missing or another one, or the facts
        cannot be taught as asked.
    """
    require_free(config.run_dir)
    base = load_run(config.base)
    require(
        base.finetune is None or base.finetune.optim.method != "lora",
        f"{config.base} was taught by lora, and what it added cannot be taught over: "
        "teach the run it came from",
    )
    questions = load_questions(base, config.facts, config.teach, console)
    loaded = _usage(config, base) if config.optim.method == "smf" else None
    background = loaded and Background(
        jnp.asarray(loaded.document_frequency), jnp.asarray(loaded.num_documents)
    )
    batches = _batches(config, base, questions, console)
    tables = [np.asarray(table[...]) for table in base.model.values]
    if config.optim.method == "lora":
        add_lora(base.model, config.optim.lora, rngs=nnx.Rngs(config.seed))
    run_dir = create_run_dir(
        config.run_dir,
        base.pretrain,
        config,
        base.tokenizer,
        questions.corpus_hash,
    )
    method = make_method(config.optim, config.steps)
    graph, state, frozen = split_for_training(base.model, method)
    trainable = _count_trainable(method, state)
    memory = base.pretrain.model.memory
    step = make_step(graph, memory, method, config.accumulate)
    ask = functools.partial(ask_all, graph, base.tokenizer, questions)

    points, done = [ask(0, (state.trainable, frozen))], 0
    every = config.eval_every or config.steps
    title = f"finetune {run_dir.name}"
    with metrics_log(
        run_dir / METRICS, title, config.steps, config.log_every, console
    ) as log:
        while done < config.steps:
            until = min(done + every, config.steps)
            steps = range(done + 1, until + 1)
            state = train(step, state, frozen, background, batches, steps, log)
            points.append(ask(until, (state.trainable, frozen)))
            done = until

    model = nnx.merge(graph, state.trainable, frozen)
    written = [
        (np.asarray(after[...]) != before).any(axis=1)
        for before, after in zip(tables, model.values, strict=True)
    ]
    taught = Finetuned(run_dir, points, trainable)
    record = {
        "curve": taught.curve(),
        "trainable": trainable,
        "slots_by_document_frequency": _slot_histogram(loaded, written),
        "answers_before": points[0].answers,
    }
    write_json(run_dir / TEACHING, record)
    write_evaluation(run_dir, questions, points[-1])
    checkpoint.save(run_dir, config.steps, all_params(model))
    return taught


def _batches(
    config: FinetuneConfig, base: Run, questions: Questions, console: Console
) -> Iterator[Batch]:
    encoded = [
        [
            encode_example(base.tokenizer, example, config.loss_on)
            for example in taught_examples(fact, config.teach)
        ]
        for fact in questions.new
    ]
    seq_len = base.pretrain.data.seq_len
    _, dropped = drop_long([row for rows in encoded for row in rows], seq_len)
    if dropped:
        console.print(f"data: {dropped} texts longer than the context, left out")
    encoded = [[row for row in rows if fits(row, seq_len)] for rows in encoded]
    encoded = [rows for rows in encoded if rows]
    require(
        len(encoded) >= config.batch_size,
        f"batch_size={config.batch_size} exceeds the {len(encoded)} facts that there "
        "are to teach",
    )
    return taught_batches(encoded, config.batch_size, config.seed)


def _usage(config: FinetuneConfig, base: Run) -> Usage:
    memory = require_memory(base)
    require(
        config.optim.top_t <= memory.num_slots,
        f"optim.top_t={config.optim.top_t} exceeds the {memory.num_slots} slots of a "
        f"table (memory.num_keys={memory.num_keys}, squared)",
    )
    return usage.load(
        base.run_dir / USAGE, base.model_hash, memory.num_pools, memory.num_slots
    )


def _count_trainable(method: Method, state: TrainState) -> int:
    leaves = jax.tree.leaves(state.trainable)
    if method.score is None:
        return sum(leaf.size for leaf in leaves)
    return sum(method.top_t * leaf.shape[-1] for leaf in leaves)


def _slot_histogram(
    loaded: Usage | None, written: list[np.ndarray]
) -> dict[str, list[int]] | None:
    """Counts all slots and the written ones by how many documents read them."""
    if loaded is None:
        return None
    frequency, bins = loaded.document_frequency, loaded.num_documents + 1
    return {
        "all": np.bincount(frequency.ravel(), minlength=bins).tolist(),
        "written": np.bincount(frequency[np.stack(written)], minlength=bins).tolist(),
    }
