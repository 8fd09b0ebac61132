"""Teaches new facts to a run's model by any method, and records what it forgot."""

from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from flax import nnx
from rich.console import Console

from smf_jax import multihost
from smf_jax.config import FinetuneConfig
from smf_jax.data.fact_batches import fact_batches
from smf_jax.evaluate.asking import Asking
from smf_jax.evaluate.forgetting import CurvePoint, forgetting
from smf_jax.evaluate.questions import (
    Evaluation,
    Questions,
    evaluate_model,
)
from smf_jax.model.build import with_rows
from smf_jax.model.lora import add_lora
from smf_jax.model.transformer import Transformer
from smf_jax.optim.methods import Method, make_method
from smf_jax.runs import AUTO, Resume, Run, load_base, open_run
from smf_jax.runs.files import (
    EVALUATION,
    PATCH,
    SLOTS,
    TEACHING,
    read_result,
    write_result,
)
from smf_jax.runs.record import describe
from smf_jax.slots import document_frequency, patch, sparse_table
from smf_jax.slots.document_frequency import Background
from smf_jax.slots.patch import Patch
from smf_jax.train.fit import Training, fit, prepare
from smf_jax.train.prefix_cache import uses_cache, with_prefixes
from smf_jax.train.state import TrainState, background_shardings
from smf_jax.verbs.evaluate import write_evaluation
from smf_jax.verbs.task import Task, load_task


class Finetuned(NamedTuple):
    """What teaching did."""

    run_dir: Path
    points: list[Evaluation]  # the first before any step, the last after all
    questions: Questions
    asking: Asking
    trainable: int  # numbers that one step may change

    def curve(self) -> list[CurvePoint]:
        """Returns what was learned and kept at each point."""
        return [point.on_curve() for point in self.points]


def finetune(
    config: FinetuneConfig, console: Console, resume: Resume = AUTO
) -> Finetuned:
    """Teaches facts to the model of `config.base`, or resumes teaching them.

    Raises:
      ConfigError: The base or its usage is missing or does not match, the facts cannot
        be taught this way, or the run directory holds a damaged or different run.
      Interrupted, TrainingError, SaveError: As `fit` does.
    """
    with open_run(config.run_dir, console, resume) as run:
        base = load_base(config, console)
        task = load_task(config, base, console)
        model, layout = base.model, base.model.layout
        if task.table is not None:
            model = with_rows(model, task.table.slots)
        method = _make_method(config, task, model)
        before = []
        if method.score is not None:  # the tables are all that trains
            before = [patch.snapshot(table[...]) for table in model.values]
        if config.optim.method == "lora":
            add_lora(model, config.optim.lora, rngs=nnx.Rngs(config.seed))
        run.begin(_record(config, base, task), base.tokenizer)
        if task.table is not None and run.start is None and multihost.is_main():
            sparse_table.save(run.run_dir / SLOTS, "slots", task.table)
        points = [Evaluation.from_json(p) for p in run.progress.get("points", ())]
        if run.start == config.steps:
            trainable = read_result(run.run_dir / TEACHING)["trainable"]
            about = (task.questions, task.asking, trainable)
            return Finetuned(run.run_dir, points, *about)

        training = prepare(run, config, model, method)

        def evaluate(step, trainable):
            model = nnx.merge(training.graph, trainable, training.frozen)
            about = (task.questions, task.texts, step, task.asking, console)
            return evaluate_model(model, base.tokenizer, *about)

        if not points:
            asked = sum(map(len, task.questions.groups().values()))
            console.print(f"evaluating the base: {asked:,} questions")
            points = [evaluate(0, training.state.trainable)]
            _warn_of_unknown(points[0], task.questions, console)
        run.progress["points"] = _saved(points)
        trainable = _count_trainable(method, training.state)
        batches = _batches(config, task, training, console)
        background = task.background
        if background is not None:
            with_facts = background.num_facts is not None
            shardings = background_shardings(layout, with_facts)
            background = layout.device_put(background, shardings)
        records = [fact.id for fact in task.questions.new]
        for step, state in fit(
            run, config, training, batches, records, background, config.eval_every
        ):
            points.append(evaluate(step, state.trainable))
            run.progress["points"] = _saved(points)
            run.scores.update(points[-1].exact_matches())
            if step == config.steps:
                tables = jax.tree.leaves(state.trainable)
                change = None
                if before:
                    restored = (restore() for restore in before)
                    change = patch.diff(restored, tables, base.model_hash)
                _write_outputs(run.run_dir, task, points, trainable, change)
    return Finetuned(run.run_dir, points, task.questions, task.asking, trainable)


def _warn_of_unknown(base: Evaluation, questions: Questions, console: Console) -> None:
    known = base.scores.get("known")
    if known is not None and known.exact_match == 0:
        console.print(
            f"WARNING: the base answers none of the {len(questions.known):,} known "
            "facts as they are asked: forgetting does not show in them, only in texts",
            style="bold red",
        )


def _make_method(config: FinetuneConfig, task: Task, model: Transformer) -> Method:
    method = make_method(config.optim, config.steps, facts_per_step=task.batch_size)
    if method.rows_per_fact is None:
        return method
    rows = model.config.memory.table_rows  # which may be few
    return method._replace(top_t=min(method.top_t, rows))


def _record(config: FinetuneConfig, base: Run, task: Task) -> dict[str, Any]:
    background = task.background
    return describe(
        base.lineage._replace(finetune=config),
        base.tokenizer,
        corpus_hash=task.questions.hash,
        base_hash=base.model_hash,
        usage_hash=background and document_frequency.content_hash(background),
    )


def _batches(
    config: FinetuneConfig, task: Task, training: Training, console: Console
) -> grain.DatasetIterator:
    facts = task.facts
    if uses_cache(config, facts):
        per_batch = task.batch_size // config.grad_accum_steps
        graph, params = training.graph, training.params
        facts = with_prefixes(facts, graph, params, per_batch, console)
    return fact_batches(facts, task.batch_size, config.seed)


def _saved(points: list[Evaluation]) -> list[dict]:
    # Answers before and after teaching are compared; those between are not kept.
    between = (point._replace(answers={}) for point in points[1:-1])
    kept = [points[0], *between, *points[1:][-1:]]
    return [point.to_json() for point in kept]


def _write_outputs(
    run_dir: Path,
    task: Task,
    points: list[Evaluation],
    trainable: int,
    change: Patch | None,
) -> None:
    histogram = None
    if change is not None:
        histogram = _slot_histogram(task.background, change)
        if task.table is not None:
            change = patch.at_slots(change, [task.table.slots])
        if multihost.is_main():
            patch.save(run_dir / PATCH, change)
    known, (first, *_, last) = task.questions.known, points
    kept = known and forgetting(known, first.answers["known"], last.answers["known"])
    record = {
        "curve": [point.on_curve() for point in points],
        "texts": [point.texts and point.texts._asdict() for point in points],
        "forgetting": kept._asdict() if kept else None,
        "trainable": trainable,
        "slots_by_document_frequency": histogram,
        "answers_before": first.answers,
    }
    write_result(run_dir / TEACHING, record)
    write_evaluation(run_dir / EVALUATION, task.questions, last, task.asking)


def _count_trainable(method: Method, state: TrainState) -> int:
    leaves = jax.tree.leaves(state.trainable)
    if method.score is None:
        return sum(leaf.size for leaf in leaves)
    return sum(method.top_t * leaf.shape[-1] for leaf in leaves)


def _slot_histogram(background: Background, change: Patch) -> dict[str, list[int]]:
    """Counts all slots and the written ones by their document frequency."""
    frequency, bins = background.document_frequency, background.num_documents + 1
    tables = zip(frequency, change.tables, strict=True)
    written = np.concatenate([of_table[rows.slots] for of_table, rows in tables])
    return {
        "all": np.bincount(frequency.ravel(), minlength=bins).tolist(),
        "written": np.bincount(written, minlength=bins).tolist(),
    }
