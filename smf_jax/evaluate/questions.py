"""The questions a model is evaluated on, and how it answers them."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console

from smf_jax.config import Teach, require_source
from smf_jax.data.batches import Batch
from smf_jax.data.corpus import Corpus, load_facts, load_kept
from smf_jax.data.examples import held_out_prompts, known_prompt, taught_prompts
from smf_jax.data.prompts import Prompt
from smf_jax.data.records import Fact
from smf_jax.data.tokenizer import Tokenizer
from smf_jax.evaluate.answers import answer, longest_answer
from smf_jax.evaluate.asking import Asking
from smf_jax.evaluate.forgetting import CurvePoint
from smf_jax.evaluate.perplexity import TextLoss, text_loss
from smf_jax.evaluate.scores import Scores, score
from smf_jax.model.lora import merge_lora
from smf_jax.model.transformer import Transformer
from smf_jax.progress import progress

TEXTS_PER_BATCH = 16
# The groups of questions, as users read them.
GROUPS = {"taught": "taught", "held_out": "held-out wording", "known": "known"}


class Questions(NamedTuple):
    """Facts to teach, and the prompts that ask for them and for known facts."""

    new: list[Fact]  # to be taught
    taught: list[Prompt]  # new facts, in the words that teach them
    held_out: list[Prompt]  # new facts, in words that are never trained on
    known: list[Prompt]  # facts of pretraining
    hash: str  # of all of them, and of their corpus

    def groups(self) -> dict[str, list[Prompt]]:
        """Returns the groups that are not empty, by name."""
        groups = {name: getattr(self, name) for name in GROUPS}
        return {name: prompts for name, prompts in groups.items() if prompts}


NO_QUESTIONS = Questions([], [], [], [], "")


class Evaluation(NamedTuple):
    """Scores and answers of a model after some steps."""

    step: int
    scores: dict[str, Scores]  # of each group of `Questions`
    answers: dict[str, list[str]]
    texts: TextLoss | None = None  # on texts of its training

    def exact_matches(self) -> dict[str, float]:
        """Returns the exact match of each group."""
        return {name: of.exact_match for name, of in self.scores.items()}

    def on_curve(self) -> CurvePoint:
        """Returns the exact matches as a point of a method's curve."""
        matches = self.exact_matches()
        return CurvePoint(self.step, *map(matches.get, CurvePoint._fields[1:]))

    def to_json(self) -> dict[str, Any]:
        """Returns the evaluation in types that JSON has."""
        scores = {group: scores._asdict() for group, scores in self.scores.items()}
        texts = self.texts and self.texts._asdict()
        return self._asdict() | {"scores": scores, "texts": texts}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Evaluation":
        """Returns the evaluation that `to_json` was called on."""
        scores = {group: Scores(**of) for group, of in content["scores"].items()}
        texts = content["texts"] and TextLoss(**content["texts"])
        return cls(**content | {"scores": scores, "texts": texts})


def load_questions(
    corpus: Corpus,
    facts: str | None,
    patterns: str | None,
    teach: Teach,
    console: Console,
    fields: str | None = None,
    keep: Sequence[str] = (),
) -> Questions:
    """Returns the questions for a run and the runs taught from it.

    The new facts are those of `facts`, or else those that were held back from the
    run's corpus; `teach` is what is trained on, and `fields` are those of a
    data set: see `read_facts`. The known facts are those of the files of `keep`, or
    else of the corpus.
    """
    new = corpus.new
    if facts is not None:
        require_source("facts", facts)
        new, notes = load_facts(facts, patterns, fields)
        for note in notes:
            console.print(f"data: {note}")
    old = load_kept(keep, fields) if keep else corpus.known
    known = {fact.name.lower() for fact in old}
    overlap = sum(fact.name.lower() in known for fact in new)
    if overlap:
        console.print(
            f"data: {overlap} of the {len(new)} new facts are known facts, too: scores "
            "of forgetting are invalid"
        )
    taught, held_out = (
        [prompt for fact in new for prompt in prompts_of(fact, teach)]
        for prompts_of in (taught_prompts, held_out_prompts)
    )
    content = (corpus.hash, new, taught, held_out, *([old] if keep else []))
    digest = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
    return Questions(new, taught, held_out, [*map(known_prompt, old)], digest)


def evaluate_model(
    model: Transformer,
    tokenizer: Tokenizer,
    questions: Questions,
    texts: list[Batch],
    step: int,
    asking: Asking,
    console: Console,
) -> Evaluation:
    """Returns a model's answers to every question, and its loss on texts.

    LoRA is merged in place: evaluated as it is exported, at the cost of the base.
    """
    merge_lora(model)
    losses = text_loss(model, texts, TEXTS_PER_BATCH) if texts else None
    groups = questions.groups()
    if not groups:
        return Evaluation(step, {}, {}, losses)
    # All in one call, so that prompts of all groups share batches and programs.
    prompts = [prompt for of_group in groups.values() for prompt in of_group]
    form, config, context = asking
    length = config.max_new_tokens or longest_answer(tokenizer, prompts, form)
    title = f"asking after step {step}" if step else "asking"
    with progress(title, len(prompts), console) as tell:
        replies = answer(model, tokenizer, prompts, length, form, config, context, tell)
    answers, start = {}, 0
    for name, of_group in groups.items():
        answers[name] = replies[start : start + len(of_group)]
        start += len(of_group)
    scores = {name: score(answers[name], prompts) for name, prompts in groups.items()}
    return Evaluation(step, scores, answers, losses)
