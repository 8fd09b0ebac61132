"""What a finetuning run teaches to which model, and the files that it writes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree
from rich.console import Console

from smf_jax import checkpoint, multihost
from smf_jax.config import FinetuneConfig
from smf_jax.evaluate.forgetting import forgetting
from smf_jax.evaluate.questions import Evaluation, evaluate_model
from smf_jax.model.transformer import Transformer
from smf_jax.optim.methods import Method, make_method
from smf_jax.runs import OpenRun, Run
from smf_jax.runs.files import EVALUATION, PATCH, TEACHING, write_result
from smf_jax.slots import patch
from smf_jax.slots.document_frequency import Background
from smf_jax.slots.patch import Patch
from smf_jax.train.fit import Training
from smf_jax.train.state import TrainState, as_saved
from smf_jax.verbs.budget import Broken, describe_budget
from smf_jax.verbs.evaluate import write_evaluation
from smf_jax.verbs.patch import describe_change
from smf_jax.verbs.task import Task


class Lesson(NamedTuple):
    """What a run teaches to which model."""

    config: FinetuneConfig
    base: Run
    task: Task
    model: Transformer
    before: list[Callable[[], Array]]  # restore each table, if tables alone are taught
    console: Console

    def method(self, rate: float = 1.0) -> Method:
        """Returns the method, at a share of the configured learning rate."""
        config, task = self.config, self.task
        optim = config.optim
        optim = dataclasses.replace(optim, learning_rate=rate * optim.learning_rate)
        method = make_method(optim, config.steps, facts_per_step=task.batch_size)
        return method.within(self.model.config.memory)

    def evaluate(self, training: Training, step: int, trainable: PyTree) -> Evaluation:
        """Returns what the model answers after some steps."""
        model = nnx.merge(training.graph, trainable, training.frozen)
        task, tokenizer = self.task, self.base.tokenizer
        about = (task.questions, task.texts, step, task.asking, self.console)
        return evaluate_model(model, tokenizer, *about)


def save_state(
    run: OpenRun, config: FinetuneConfig, step: int, state: TrainState
) -> None:
    """Saves a state that no step has led to as the checkpoint of a step."""
    with checkpoint.saver(run.run_dir, config.save) as saver:
        saver.save(step, as_saved(state), dict(run.progress), {})


def saved_points(points: Sequence[Evaluation]) -> list[dict]:
    """Returns evaluations as they are saved: answers only of the first and the last."""
    between = (point._replace(answers={}) for point in points[1:-1])
    kept = [points[0], *between, *points[1:][-1:]]
    return [point.to_json() for point in kept]


def write_outputs(
    run: OpenRun,
    lesson: Lesson,
    trainable: PyTree,
    points: Sequence[Evaluation],
    broken: Sequence[Broken],
) -> None:
    """Writes the patch, what was found at each point, and every answer."""
    task, histogram = lesson.task, None
    if lesson.before:
        change = _changed_rows(lesson, trainable)
        histogram = _slot_histogram(task.background, change)
        if multihost.is_main():
            change = describe_change(change, run.run_dir, task)
            patch.save(run.run_dir / PATCH, change)
    known, first, last = task.questions.known, points[0], points[-1]
    kept = known and forgetting(known, first.answers["known"], last.answers["known"])
    record = {
        "curve": [point.on_curve() for point in points],
        "texts": [point.texts and point.texts._asdict() for point in points],
        "forgetting": kept._asdict() if kept else None,
        "budget": describe_budget(lesson.config.keep, broken, last.step),
        "trainable": _count_trainable(lesson.method(), trainable),
        "slots_by_document_frequency": histogram,
        "answers_before": first.answers,
    }
    write_result(run.run_dir / TEACHING, record)
    write_evaluation(run.run_dir / EVALUATION, task.questions, last, task.asking)


def _changed_rows(lesson: Lesson, tables: PyTree) -> Patch:
    restored = (restore() for restore in lesson.before)
    return patch.diff(restored, jax.tree.leaves(tables), lesson.base.model_hash)


def _count_trainable(method: Method, trainable: PyTree) -> int:
    leaves = jax.tree.leaves(trainable)
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
