"""What a model is asked before, while and after it is taught, and how it does."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import PyTree
from rich.console import Console

from smf_jax import distributed
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
from smf_jax.sharding import Placement
from smf_jax.train.record import EVALUATION, write_json
from smf_jax.train.run import (
    Run,
    corpus_of,
    load_run,
    tell_placement,
    tell_unhealed,
)

TEXTS, TEXTS_AT_ONCE = 64, 16  # rows of text that forgetting is measured on


class Questions(NamedTuple):
    """Facts to teach and facts to keep, as they are asked."""

    new: list[Fact]  # to be taught
    taught: list[Fact]  # the same, asked in the wording that teaches them
    held_out: list[Fact]  # the same, asked in a wording that is never trained on
    known: list[Fact]  # part of pretraining
    hash: str  # of all of them, and of the corpus they come from

    def groups(self) -> dict[str, list[Fact]]:
        """Returns what there is to ask, by name."""
        groups = {"taught": self.taught, "held_out": self.held_out, "known": self.known}
        return {name: facts for name, facts in groups.items() if facts}


class Point(NamedTuple):
    """How a model does after some steps."""

    step: int
    scores: dict[str, Scores]  # of each group of `Questions`
    answers: dict[str, list[str]]
    text_loss: float | None = None  # on texts of its training, in nats a token

    def on_curve(self) -> CurvePoint:
        """Returns the exact match on each group, as a point of a method's curve."""
        matches = {name: of.exact_match for name, of in self.scores.items()}
        return CurvePoint(
            self.step, matches["taught"], matches["held_out"], matches.get("known")
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the point in types that JSON has."""
        scores = {group: scores._asdict() for group, scores in self.scores.items()}
        return self._asdict() | {"scores": scores}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Point":
        """Returns the point that `to_json` was of."""
        scores = {group: Scores(**of) for group, of in content["scores"].items()}
        return cls(**content | {"scores": scores})


def load_questions(
    corpus: Corpus,
    facts: str | None,
    teach: Teach,
    console: Console,
) -> Questions:
    """Returns what is asked of a run and its offspring.

    Args:
      corpus: What the run was trained on, and what was kept back.
      facts: A file of new facts; None takes those that were kept back.
      teach: The wording that is trained on.
      console: Told of facts that are left out.
    """
    new, held_out = corpus.new, corpus.new_held_out
    if facts is not None:
        new, notes = without_repeats(read_facts(facts))
        for note in notes:
            console.print(f"data: {note}")
        held_out = [reword(fact, HELD_OUT_FRAME) for fact in new]
    known = {fact.question.lower() for fact in corpus.known}
    both = sum(fact.question.lower() in known for fact in new)
    if both:
        console.print(
            f"data: {both} of the {len(new)} new facts are among the known ones, too: "
            "what they tell of forgetting is wrong"
        )
    taught = [as_taught(fact, teach) for fact in new]
    content = (corpus.hash, new, taught, held_out)
    digest = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
    return Questions(new, taught, held_out, corpus.known, digest)


def sample_texts(run: Run, corpus: Corpus) -> list[Batch]:
    """Returns rows of some texts that a run was trained on, on which to forget."""
    texts = corpus.texts[:: -(-len(corpus.texts) // TEXTS) or 1]
    if not texts:
        return []
    some = corpus._replace(examples=[], texts=texts)
    packed = pack_corpus(run.tokenizer, some, run.data.seq_len, "all")
    return packed.texts[:TEXTS]


def ask_all(
    graph: nnx.GraphDef,
    tokenizer: Tokenizer,
    questions: Questions,
    texts: list[Batch],
    placement: Placement,
    step: int,
    params: tuple[PyTree, ...],
) -> Point:
    """Returns how the model answers every question, and its loss on texts.

    Answers are by greedy generation.
    """
    # However a method splits it: models alike in structure share their programs.
    graph, params = _as_asked(nnx.merge(graph, *map(nnx.as_pure, params)))
    loss = None
    if texts:
        loss = mean_loss(graph, params, texts, TEXTS_AT_ONCE, placement)
    groups = questions.groups()
    if not groups:
        return Point(step, {}, {}, loss)
    asked = [fact for facts in groups.values() for fact in facts]
    # All in one call, so that prompts of all groups share batches and programs.
    replies = answer(
        graph,
        params,
        tokenizer,
        [fact.question for fact in asked],
        longest_answer(tokenizer, asked),
        placement,
    )
    answers, start = {}, 0
    for name, facts in groups.items():
        answers[name] = replies[start : start + len(facts)]
        start += len(facts)
    scores = {name: score(answers[name], facts) for name, facts in groups.items()}
    return Point(step, scores, answers, loss)


def _as_asked(model: Transformer) -> tuple[nnx.GraphDef, tuple[PyTree]]:
    """Returns a model's structure and parameters, with what LoRA adds in its maps.

    So it is asked as it is exported, and for no more work a token than its base.
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
) -> Point:
    """Asks a run every question, and writes the scores and answers beside it.

    It is asked as it was after `step`, by default the last. Of a step that was named,
    and of other facts, the answers get a file of their own. The wording called taught
    is that of the run's own teaching; for other facts, and for a run that was taught
    nothing, the questions as they stand.
    """
    run = load_run(run_dir, step, mesh=mesh)
    tell_placement(run.model.placement, console)
    tell_unhealed(run, console)
    corpus = corpus_of(run)
    if facts is None and run.made.finetune is not None:
        own = run.made.finetune
        questions = load_questions(corpus, own.facts, own.teach, console)
        require(
            questions.hash == run.corpus_hash,
            f"the facts of {run_dir} are not those it was taught and asked (hash "
            f"{run.corpus_hash} then, {questions.hash} now)",
        )
    else:
        questions = load_questions(corpus, facts, "questions", console)
    require(bool(questions.groups()), f"{run_dir} has nothing to ask: name --facts")
    distributed.require_same("data", questions.hash)
    graph, params = nnx.split(run.model)
    ask = (graph, run.tokenizer, questions, sample_texts(run, corpus))
    point = ask_all(*ask, run.model.placement, run.step, (params,))
    name = Path(EVALUATION).stem
    if step is not None:
        name += f"-{step}"
    if facts is not None:
        name += f"-{Path(facts).name.split('.')[0]}"
    write_evaluation(run.run_dir / f"{name}.json", questions, point)
    return point


def write_evaluation(path: Path, questions: Questions, point: Point) -> None:
    """Writes scores and every answer."""
    answers = {
        group: [
            fact._asdict() | {"answer": given}
            for fact, given in zip(facts, point.answers[group], strict=True)
        ]
        for group, facts in questions.groups().items()
    }
    write_json(path, point.to_json() | {"answers": answers})


def ask_one(
    run_dir: str, question: str, max_new_tokens: int, mesh: MeshConfig | None = None
) -> str:
    """Returns a run's greedy answer to one question."""
    run = load_run(run_dir, mesh=mesh)
    given = (run.tokenizer, [question], max_new_tokens, run.model.placement)
    return answer(*_as_asked(run.model), *given)[0]
