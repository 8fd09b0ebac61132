"""The questions a model is evaluated on, and how it answers them."""

import hashlib
from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import PyTree
from rich.console import Console

from smf_jax.config import Teach
from smf_jax.data.batches import Batch
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
from smf_jax.sharding import MeshLayout

TEXTS_PER_BATCH = 16


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
    graph, params = merged(nnx.merge(graph, *map(nnx.as_pure, params)))
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


def merged(model: Transformer) -> tuple[nnx.GraphDef, tuple[PyTree]]:
    """Returns a model's graph and parameters, with LoRA merged into its base.

    So it is evaluated as it is exported, at the cost of its base.
    """
    merge_lora(model)
    graph, params = nnx.split(model)
    return graph, (nnx.as_pure(params),)
