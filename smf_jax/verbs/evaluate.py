"""Evaluates a run on the facts it was taught and those it should have kept."""

from pathlib import Path

from rich.console import Console

from smf_jax import multihost
from smf_jax.config import MeshConfig, require
from smf_jax.data.batches import Batch, pack_corpus
from smf_jax.data.corpus import Corpus
from smf_jax.evaluate.answers import answer
from smf_jax.evaluate.questions import (
    Evaluation,
    Questions,
    evaluate_model,
    load_questions,
)
from smf_jax.model.lora import merge_lora
from smf_jax.runs.files import EVALUATION, write_json
from smf_jax.runs.load import Run, corpus_of, load_run, print_layout, warn_unhealed

TEXTS = 64  # rows of text for the loss


def evaluate(
    run_dir: str,
    facts: str | None,
    console: Console,
    step: int | None = None,
    mesh: MeshConfig | None = None,
) -> tuple[Evaluation, Questions]:
    """Evaluates a run on all its questions, and writes scores and answers beside it.

    The checkpoint is that of `step`, by default the last. Another step and other facts
    get a file of their own. The wording called "taught" is that of the run's own
    teaching; for other facts, and for a run that was taught nothing, the questions
    themselves.
    """
    run = load_run(run_dir, step, mesh=mesh)
    print_layout(run.model.layout, console)
    warn_unhealed(run, console)
    corpus = corpus_of(run)
    if facts is None and run.lineage.finetune is not None:
        own = run.lineage.finetune
        questions = load_questions(corpus, own.facts, own.teach, console)
        require(
            questions.hash == run.corpus_hash,
            f"the facts of {run_dir} have changed since it was taught (hash "
            f"{run.corpus_hash} then, {questions.hash} now)",
        )
    else:
        questions = load_questions(corpus, facts, "questions", console)
    require(bool(questions.groups()), f"{run_dir} has no questions: name --facts")
    multihost.require_same("data", questions.hash)
    texts = sample_texts(run, corpus)
    evaluation = evaluate_model(run.model, run.tokenizer, questions, texts, run.step)
    name = Path(EVALUATION).stem
    if step is not None:
        name += f"-{step}"
    if facts is not None:
        name += f"-{Path(facts).name.split('.')[0]}"
    write_evaluation(run.run_dir / f"{name}.json", questions, evaluation)
    return evaluation, questions


def write_evaluation(path: Path, questions: Questions, evaluation: Evaluation) -> None:
    """Writes scores and every answer."""
    answers = {
        group: [
            fact._asdict() | {"answer": reply}
            for fact, reply in zip(facts, evaluation.answers[group], strict=True)
        ]
        for group, facts in questions.groups().items()
    }
    write_json(path, evaluation.to_json() | {"answers": answers})


def answer_one(
    run_dir: str, question: str, max_new_tokens: int, mesh: MeshConfig | None = None
) -> str:
    """Returns a run's greedy answer to one question."""
    run = load_run(run_dir, mesh=mesh)
    merge_lora(run.model)
    return answer(run.model, run.tokenizer, [question], max_new_tokens)[0]


def sample_texts(run: Run, corpus: Corpus) -> list[Batch]:
    """Returns rows of a run's training texts, to measure forgetting by their loss."""
    texts = corpus.texts[:: -(-len(corpus.texts) // TEXTS) or 1]
    if not texts:
        return []
    some = corpus._replace(examples=[], texts=texts)
    return pack_corpus(run.tokenizer, some, run.data).texts[:TEXTS]
