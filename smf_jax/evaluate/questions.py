"""The questions a model is evaluated on, and how it answers them."""

import hashlib
from typing import Any, NamedTuple

from rich.console import Console

from smf_jax.config import Teach, require_file
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
        """Returns the exact matches as a point of a method's curve."""
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

    The new facts are those of the file `facts`, or else those that were held back from
    the run's corpus; `teach` is the wording that is trained on.
    """
    new, held_out = corpus.new, corpus.new_held_out
    if facts is not None:
        require_file("facts", facts)
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
    model: Transformer,
    tokenizer: Tokenizer,
    questions: Questions,
    texts: list[Batch],
    step: int,
) -> Evaluation:
    """Returns a model's greedy answers to every question, and its loss on texts.

    LoRA is merged in place: evaluated as it is exported, at the cost of the base.
    """
    merge_lora(model)
    loss = mean_loss(model, texts, TEXTS_PER_BATCH) if texts else None
    groups = questions.groups()
    if not groups:
        return Evaluation(step, {}, {}, loss)
    facts = [fact for of_group in groups.values() for fact in of_group]
    # All in one call, so that prompts of all groups share batches and programs.
    prompts = [fact.question for fact in facts]
    replies = answer(model, tokenizer, prompts, longest_answer(tokenizer, facts))
    answers, start = {}, 0
    for name, of_group in groups.items():
        answers[name] = replies[start : start + len(of_group)]
        start += len(of_group)
    scores = {name: score(answers[name], facts) for name, facts in groups.items()}
    return Evaluation(step, scores, answers, loss)
