"""Teaching new facts to a run's model, by any method, with a curve of what it cost."""

import functools
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import numpy as np
from flax import nnx
from rich.console import Console

from smf_jax import distributed
from smf_jax.config import FinetuneConfig, require
from smf_jax.data.batches import Batch, drop_long, encode_example, fits
from smf_jax.data.corpus import taught_examples
from smf_jax.data.taught import stack_facts, taught_batches
from smf_jax.evaluate.forgetting import CurvePoint
from smf_jax.model.lora import add_lora
from smf_jax.optim.methods import Method, make_method
from smf_jax.sharding import Placement
from smf_jax.slots import patch, usage
from smf_jax.slots.patch import Patch
from smf_jax.slots.usage import Usage
from smf_jax.train.guard import nothing_strange, skips
from smf_jax.train.loop import is_due
from smf_jax.train.prefix import is_reused, require_room, with_prefixes
from smf_jax.train.questions import (
    Point,
    Questions,
    ask_all,
    load_questions,
    sample_texts,
    write_evaluation,
)
from smf_jax.train.record import (
    EVALUATION,
    PATCH,
    TEACHING,
    USAGE,
    describe,
    write_json,
)
from smf_jax.train.run import Run, corpus_of, load_base, require_fitting
from smf_jax.train.session import Session, train_to_end
from smf_jax.train.setting import Background, TrainState
from smf_jax.train.start import (
    AUTO,
    Resume,
    claim,
    enter_run_dir,
    find_start,
)
from smf_jax.train.state import (
    kept_on_hosts,
    restore,
    split_for_training,
    split_to_restore,
)
from smf_jax.train.step import background_shardings, make_step


class Finetuned(NamedTuple):
    """What teaching did."""

    run_dir: Path
    points: list[Point]  # the first is before any step, the last after all
    trainable: int  # numbers that one step may change

    def curve(self) -> list[CurvePoint]:
        """Returns what was learned and kept at each point."""
        return [point.on_curve() for point in self.points]


def finetune(
    config: FinetuneConfig, console: Console, resume: Resume = AUTO
) -> Finetuned:
    """Teaches facts to the model of `config.base`, or goes on with it, in a run.

    Raises:
      ConfigError: The base or its usage is missing or another one, the facts cannot
        be taught as asked, or the run is finished, damaged, or another one.
      Interrupted: A signal asked to stop, and the run was saved.
      TrainingError: Its numbers are not finite, or far off.
      SaveError: A checkpoint could not be written.
    """
    with claim(config.run_dir) as run_dir:
        start = find_start(run_dir, resume, console)
        base = load_base(config, console)
        corpus = corpus_of(base)
        questions = load_questions(corpus, config.facts, config.teach, console)
        require(
            len(questions.new) > 0, f"{config.base} kept no facts back: name --facts"
        )
        loaded = _usage(config, base, console)
        facts = _facts(config, base, questions, console)
        record = describe(
            base.made._replace(finetune=config),
            base.tokenizer,
            corpus_hash=questions.hash,
            base_hash=base.model_hash,
            usage_hash=loaded and usage.content_hash(loaded),
        )
        if config.optim.method == "lora":
            add_lora(base.model, config.optim.lora, rngs=nnx.Rngs(config.seed))
        enter_run_dir(run_dir, start, record, base.tokenizer, console)
        texts = sample_texts(base, corpus)
        return _teach(
            config, run_dir, start, base, questions, texts, loaded, facts, console
        )


def _teach(config, run_dir, start, base, questions, texts, loaded, facts, console):
    placement = base.model.placement
    tables = []
    if loaded is not None:  # then the tables are all that trains
        tables = [kept_on_hosts(table[...]) for table in base.model.values]
    method = make_method(config.optim, config.steps)
    split = split_for_training if start is None else split_to_restore
    graph, state, frozen = split(base.model, method)
    trainable = _count_trainable(method, state)
    ask = functools.partial(ask_all, graph, base.tokenizer, questions, texts, placement)
    max_skips, strange = skips(config.on_nan), nothing_strange()
    if start is None:
        points = [ask(0, (state.trainable, frozen))]
    else:
        state, progress = restore(run_dir, start, state, max_skips)
        strange = progress["strange"]
        points = [Point.from_json(point) for point in progress["points"]]
    batches = _batches(config, facts, graph, (state.trainable, frozen), console)
    if start is not None:
        batches.set_state(progress["data"])

    def look(step, state):
        if is_due(step, config.steps, config.eval_every):
            points.append(ask(step, (state.trainable, frozen)))
        if step == config.steps:  # before the checkpoint that makes the run a whole
            histogram = None
            if loaded is not None:
                taught = jax.tree.leaves(state.trainable)
                before = (back() for back in tables)
                change = patch.diff(before, taught, base.model_hash)
                histogram = _slot_histogram(loaded, change)
                if distributed.is_main():
                    patch.save(run_dir / PATCH, change)
            _write_teaching(run_dir, points, trainable, histogram)
            write_evaluation(run_dir / EVALUATION, questions, points[-1])
        # Answers before any teaching are shown beside the last; the others are not.
        saved = [points[0], *(point._replace(answers={}) for point in points[1:])]
        asked = points[-1].scores if points[-1].step == step else {}
        scores = {name: of.exact_match for name, of in asked.items()}
        return {"points": [point.to_json() for point in saved]}, scores

    session = Session(
        title=f"finetune {run_dir.name}",
        run_dir=run_dir,
        config=config,
        done=start or 0,
        step=make_step(
            graph,
            base.model.config.memory,
            method,
            config.accumulate,
            max_skips=max_skips,
            placement=placement,
        ),
        placement=placement,
        frozen=frozen,
        background=loaded and _background(loaded, placement),
        batches=batches,
        records=[fact.id for fact in questions.new],
        vocab_size=base.model.config.vocab_size,
        strange=strange,
    )
    train_to_end(session, state, max_skips, config.eval_every, look, console)
    return Finetuned(run_dir, points, trainable)


def _background(loaded: Usage, placement: Placement) -> Background:
    counts = Background(loaded.document_frequency, np.int32(loaded.num_documents))
    return placement.put(counts, background_shardings(placement))


def _write_teaching(run_dir, points, trainable, histogram) -> None:
    record = {
        "curve": [point.on_curve() for point in points],
        "text_loss": [point.text_loss for point in points],
        "trainable": trainable,
        "slots_by_document_frequency": histogram,
        "answers_before": points[0].answers,
    }
    write_json(run_dir / TEACHING, record)


def _facts(
    config: FinetuneConfig, base: Run, questions: Questions, console: Console
) -> list[Batch]:
    encoded = [
        [
            encode_example(base.tokenizer, example, config.loss_on, place)
            for example in taught_examples(fact, config.teach)
        ]
        for place, fact in enumerate(questions.new)
    ]
    seq_len = _seq_len(config, base)
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
    facts = stack_facts(encoded, seq_len)
    if is_reused(config, facts):
        needs = require_room(facts, base.model.config, base.model.placement)
        console.print(
            f"prefix: what lies below the memory is computed once for each of "
            f"{len(facts):,} facts and kept, {needs:.2f} GiB by each process",
            highlight=False,
        )
    return facts


def _batches(config, facts, graph, params, console) -> grain.DatasetIterator:
    if is_reused(config, facts):
        at_once = config.batch_size // config.accumulate
        facts = with_prefixes(facts, graph, params, at_once, console)
    return taught_batches(facts, config.batch_size, config.seed)


def _seq_len(config: FinetuneConfig, base: Run) -> int:
    data = base.made.data
    seq_len = config.seq_len or (data and data.seq_len)
    require(
        seq_len is not None, f"{config.base} was imported without data: name --seq-len"
    )
    require_fitting(seq_len, base)
    return seq_len


def _usage(config: FinetuneConfig, base: Run, console: Console) -> Usage | None:
    method = config.optim.method
    of_memory = method in ("smf", "memory") or config.optim.rows == "read"
    memory = base.memory if of_memory else None
    if method != "smf":
        return None
    require(
        config.optim.top_t <= memory.num_slots,
        f"optim.top_t={config.optim.top_t} exceeds the {memory.num_slots} slots of a "
        f"table (memory.num_keys={memory.num_keys}, squared)",
    )
    loaded = usage.load(
        base.run_dir / USAGE, base.model_hash, memory.num_pools, memory.num_slots
    )
    free = min(usage.not_in_all(loaded))
    if config.optim.select in ("tfidf", "idf") and free < config.optim.top_t:
        console.print(
            f"WARNING: {free:,} of {memory.num_slots:,} slots are not read by every "
            f"background document, so no step can write optim.top_t="
            f"{config.optim.top_t} of them; see smf usage",
            style="bold red",
        )
    return loaded


def _count_trainable(method: Method, state: TrainState) -> int:
    leaves = jax.tree.leaves(state.trainable)
    if method.score is None:
        return sum(leaf.size for leaf in leaves)
    return sum(method.top_t * leaf.shape[-1] for leaf in leaves)


def _slot_histogram(loaded: Usage, change: Patch) -> dict[str, list[int]]:
    """Counts all slots and the written ones by how many documents read them."""
    frequency, bins = loaded.document_frequency, loaded.num_documents + 1
    pools = zip(frequency, change.tables, strict=True)
    written = np.concatenate([of_pool[rows.slots] for of_pool, rows in pools])
    return {
        "all": np.bincount(frequency.ravel(), minlength=bins).tolist(),
        "written": np.bincount(written, minlength=bins).tolist(),
    }
