"""Teaches new facts to a run's model by any method, and records what it forgot."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
from flax import nnx
from rich.console import Console

from smf_jax import checkpoint, multihost
from smf_jax.config import FinetuneConfig
from smf_jax.data.batches import Batch
from smf_jax.data.fact_batches import fact_batches
from smf_jax.evaluate.asking import Asking
from smf_jax.evaluate.forgetting import CurvePoint
from smf_jax.evaluate.questions import Evaluation, Questions
from smf_jax.model.build import with_rows
from smf_jax.model.lora import add_lora
from smf_jax.runs import AUTO, OpenRun, Resume, Run, load_base, open_run
from smf_jax.runs.files import METRICS, SLOTS, TEACHING, read_result
from smf_jax.runs.jsonl import truncate_rows
from smf_jax.runs.record import describe
from smf_jax.slots import document_frequency, patch
from smf_jax.slots.document_frequency import Background
from smf_jax.train.fit import Training, fit, prepare
from smf_jax.train.prefix_cache import uses_cache, with_prefixes
from smf_jax.train.state import background_shardings
from smf_jax.verbs.budget import (
    TRIES,
    Broken,
    describe_budget,
    over_budget,
    tell_budget,
)
from smf_jax.verbs.lesson import Lesson, save_state, saved_points, write_outputs
from smf_jax.verbs.task import Task, load_task


class Finetuned(NamedTuple):
    """What teaching did."""

    run_dir: Path
    points: list[Evaluation]  # the first before any step, the last after all
    questions: Questions
    asking: Asking
    trainable: int  # numbers that one step may change
    budget: dict[str, Any] | None  # what became of it: see `describe_budget`

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
        model = base.model
        if task.rows is not None:
            model = with_rows(model, task.rows.slots)
        before = []
        if config.optim.method == "smf":  # the tables are all that trains
            before = [patch.snapshot(table[...]) for table in model.values]
        if config.optim.method == "lora":
            add_lora(model, config.optim.lora, rngs=nnx.Rngs(config.seed))
        run.begin(_record(config, base, task), base.tokenizer)
        if task.rows is not None and run.start is None and multihost.is_main():
            task.rows.save(run.run_dir / SLOTS)
        points = [Evaluation.from_json(p) for p in run.progress.get("points", ())]
        lesson = Lesson(config, base, task, model, before, console)
        if run.start != config.steps:
            points = _teach(run, lesson, points)
        record = read_result(run.run_dir / TEACHING)
    about = (task.questions, task.asking, record["trainable"], record["budget"])
    return Finetuned(run.run_dir, points, *about)


def _teach(run: OpenRun, lesson: Lesson, points: list[Evaluation]) -> list[Evaluation]:
    """Teaches to the last step, or to the last point within the budget.

    Returns:
      What was found before the first step, and at each point up to that one.
    """
    config, console = lesson.config, run.console
    broken = [Broken(**each) for each in run.progress.get("broken", ())]
    training = _prepare(run, lesson, broken)
    if not points:
        asked = sum(map(len, lesson.task.questions.groups().values()))
        console.print(f"evaluating the base: {asked:,} questions")
        points = [lesson.evaluate(training, 0, training.state.trainable)]
        _warn_of_unknown(points[0], lesson.task.questions, console)
    run.progress["points"] = saved_points(points)
    facts, background = _data(lesson, training)
    batches = fact_batches(facts, lesson.task.batch_size, config.seed)
    if config.keep.forget_at_most is not None and run.start is None:
        run.progress["data"] = batches.get_state()
        save_state(run, config, 0, training.state)  # teaching may go back to it
    while True:
        over = _take_steps(run, lesson, training, batches, background, points, broken)
        if over is None:
            return points
        broken = [*broken, over]
        run = _go_back(run, broken)
        points = [Evaluation.from_json(point) for point in run.progress["points"]]
        training = _prepare(run, lesson, broken)
        budget = describe_budget(config.keep, broken, points[-1].step)
        console.print(tell_budget(budget), style="bold red")
        if len(broken) == TRIES:
            truncate_rows(run.run_dir / METRICS, run.start)
            write_outputs(run, lesson, training.state.trainable, points, broken)
            save_state(run, config, config.steps, training.state)
            return points


def _prepare(run: OpenRun, lesson: Lesson, broken: Sequence[Broken]) -> Training:
    method = lesson.method(rate=0.5 ** len(broken))
    return prepare(run, lesson.config, lesson.model, method)


def _go_back(run: OpenRun, broken: Sequence[Broken]) -> OpenRun:
    """Returns a run as of its last checkpoint, which is within the budget."""
    multihost.barrier("budget broken")
    start = checkpoint.latest_step(run.run_dir)
    progress = checkpoint.read(run.run_dir, start).progress
    progress["broken"] = [each._asdict() for each in broken]
    return run._replace(start=start, progress=progress)


def _take_steps(
    run: OpenRun,
    lesson: Lesson,
    training: Training,
    batches: grain.DatasetIterator,
    background: Background | None,
    points: list[Evaluation],
    broken: Sequence[Broken],
) -> Broken | None:
    """Trains to the last step, and adds to `points`; returns what broke the budget."""
    config, questions = lesson.config, lesson.task.questions
    records = [fact.id for fact in questions.new]
    about = (run, config, training, batches, records, background, config.eval_every)
    guarded = config.keep.forget_at_most is not None
    with contextlib.closing(fit(*about, saves_evaluated=guarded)) as evaluations:
        for step, state in evaluations:
            point = lesson.evaluate(training, step, state.trainable)
            over = over_budget(config.keep, questions, points[0], point)
            if over is not None:
                return over
            points.append(point)
            run.progress["points"] = saved_points(points)
            run.scores.update(point.exact_matches())
            if step == config.steps:
                write_outputs(run, lesson, state.trainable, points, broken)
    return None


def _data(
    lesson: Lesson, training: Training
) -> tuple[Sequence[Batch], Background | None]:
    """Returns the facts, with their prefixes, and the background on the devices."""
    config, task = lesson.config, lesson.task
    facts, layout = task.facts, training.layout
    background = None if lesson.method().rows_per_fact else task.background
    if uses_cache(config, facts):
        per_batch = task.batch_size // config.grad_accum_steps
        graph, params = training.graph, training.params
        facts = with_prefixes(facts, graph, params, per_batch, lesson.console)
    if background is not None:
        with_facts = background.num_facts is not None
        shardings = background_shardings(layout, with_facts)
        background = layout.device_put(background, shardings)
    return facts, background


def _warn_of_unknown(base: Evaluation, questions: Questions, console: Console) -> None:
    known = base.scores.get("known")
    if known is not None and known.exact_match == 0:
        console.print(
            f"WARNING: the base answers none of the {len(questions.known):,} known "
            "facts as they are asked: forgetting does not show in them, only in texts",
            style="bold red",
        )


def _record(config: FinetuneConfig, base: Run, task: Task) -> dict[str, Any]:
    background = task.background
    return describe(
        base.lineage._replace(finetune=config),
        base.tokenizer,
        corpus_hash=task.questions.hash,
        base_hash=base.model_hash,
        usage_hash=background and document_frequency.content_hash(background),
    )
