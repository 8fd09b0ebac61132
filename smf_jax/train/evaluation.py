"""Evaluates a model on the facts it is taught and those it should keep."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import PyTree
from rich.console import Console

from smf_jax import multihost
from smf_jax.config import MeshConfig, Teach, require
from smf_jax.data.batches import Batch, pack_corpus
from smf_jax.data.corpus import (
    HELD_OUT_FRAME,
    Corpus,
    as_taught,
    reword,
    without_repeats,
)
from smf_jax.data.records import Fact, read_facts
from smf_jax.data.tokenizer import Tokenizer
from smf_jax.evaluate.answers import Scores, answer, longest_answer, score
from smf_jax.evaluate.forgetting import CurvePoint
from smf_jax.evaluate.perplexity import mean_loss
from smf_jax.model.lora import merge_lora
from smf_jax.model.transformer import Transformer
from smf_jax.runs.files import EVALUATION, write_json
from smf_jax.runs.load import (
    Run,
    corpus_of,
    load_run,
    print_layout,
    warn_unhealed,
)
from smf_jax.sharding import MeshLayout

TEXTS, TEXTS_PER_BATCH = 64, 16  # rows of text for the loss


class Questions(NamedTuple):
    """Facts to teach and facts to keep, worded as questions."""

    new: list[Fact]  # to be taught
    taught: list[Fact]  # the same, in the wording that teaches them
    held_out: list[Fact]  # the same, in a wording that is never trained on
    known: list[Fact]  # from pretraining
    hash: str  # of all of them, and of their corpus

    def groups(self) -> dict[str, list[Fact]]:
        """Returns the groups that are not empty, by name."""
        groups = {"taught": self.taught, "held_out": self.held_out, "known": self.known}
        return {name: facts for name, facts in groups.items() if facts}


class Evaluation(NamedTuple):
    """Scores and answers of a model after some steps."""

    step: int
    scores: dict[str, Scores]  # of each group of `Questions`
    answers: dict[str, list[str]]
    text_loss: float | None = None  # on texts of its training, in nats a token

    def exact_matches(self) -> dict[str, float]:
        """Returns the exact match of each group."""
        return {name: of.exact_match for name, of in self.scores.items()}

    def on_curve(self) -> CurvePoint:
        """Returns the exact match of each group, as a point of a method's curve."""
        matches = self.exact_matches()
        return CurvePoint(
            self.step, matches["taught"], matches["held_out"], matches.get("known")
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the evaluation in types that JSON has."""
        scores = {group: scores._asdict() for group, scores in self.scores.items()}
        return self._asdict() | {"scores": scores}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Evaluation":
        """Returns the evaluation that `to_json` was called on."""
        scores = {group: Scores(**of) for group, of in content["scores"].items()}
        return cls(**content | {"scores": scores})


def load_questions(
    corpus: Corpus, facts: str | None, teach: Teach, console: Console
) -> Questions:
    """Returns the questions for a run and the runs taught from it.

    Args:
      corpus: The run's training data, and the facts held back from it.
      facts: A file of new facts; None takes those that were held back.
      teach: The wording that is trained on.
      console: For notes on facts that are left out.
    """
    new, held_out = corpus.new, corpus.new_held_out
    if facts is not None:
        new, notes = without_repeats(read_facts(facts))
        for note in notes:
            console.print(f"data: {note}")
        held_out = [reword(fact, HELD_OUT_FRAME) for fact in new]
    known = {fact.question.lower() for fact in corpus.known}
    overlap = sum(fact.question.lower() in known for fact in new)
    if overlap:
        console.print(
            f"data: {overlap} of the {len(new)} new facts are known facts, too: scores "
            "of forgetting are invalid"
        )
    taught = [as_taught(fact, teach) for fact in new]
    content = (corpus.hash, new, taught, held_out)
    digest = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
    return Questions(new, taught, held_out, corpus.known, digest)


def sample_texts(run: Run, corpus: Corpus) -> list[Batch]:
    """Returns rows of a run's training texts, to measure forgetting by their loss."""
    texts = corpus.texts[:: -(-len(corpus.texts) // TEXTS) or 1]
    if not texts:
        return []
    some = corpus._replace(examples=[], texts=texts)
    packed = pack_corpus(run.tokenizer, some, run.data.seq_len, "all")
    return packed.texts[:TEXTS]


def evaluate_model(
    graph: nnx.GraphDef,
    tokenizer: Tokenizer,
    questions: Questions,
    texts: list[Batch],
    layout: MeshLayout,
    step: int,
    params: tuple[PyTree, ...],
) -> Evaluation:
    """Returns a model's greedy answers to every question, and its loss on texts."""
    # However a method splits it: models of one graph share their programs.
    graph, params = _merged(nnx.merge(graph, *map(nnx.as_pure, params)))
    loss = None
    if texts:
        loss = mean_loss(graph, params, texts, TEXTS_PER_BATCH, layout)
    groups = questions.groups()
    if not groups:
        return Evaluation(step, {}, {}, loss)
    facts = [fact for of_group in groups.values() for fact in of_group]
    # All in one call, so that prompts of all groups share batches and programs.
    replies = answer(
        graph,
        params,
        tokenizer,
        [fact.question for fact in facts],
        longest_answer(tokenizer, facts),
        layout,
    )
    answers, start = {}, 0
    for name, of_group in groups.items():
        answers[name] = replies[start : start + len(of_group)]
        start += len(of_group)
    scores = {name: score(answers[name], facts) for name, facts in groups.items()}
    return Evaluation(step, scores, answers, loss)


def _merged(model: Transformer) -> tuple[nnx.GraphDef, tuple[PyTree]]:
    """Returns a model's graph and parameters, with LoRA merged into its base.

    So it is evaluated as it is exported, at the cost of its base.
    """
    merge_lora(model)
    graph, params = nnx.split(model)
    return graph, (nnx.as_pure(params),)


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
    graph, params = nnx.split(run.model)
    texts = sample_texts(run, corpus)
    layout = run.model.layout
    evaluation = evaluate_model(
        graph, run.tokenizer, questions, texts, layout, run.step, (params,)
    )
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
    rest = (run.tokenizer, [question], max_new_tokens, run.model.layout)
    return answer(*_merged(run.model), *rest)[0]
