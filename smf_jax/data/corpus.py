"""The corpus of a run: known facts, new facts, and the texts of pretraining."""

import hashlib
import random
import re
from typing import NamedTuple

from smf_jax.config import DataConfig, Teach, require, require_file
from smf_jax.data.records import Fact, Text, read_facts, read_texts
from smf_jax.data.world import make_world


class Example(NamedTuple):
    """A prompt, and the completion that a model learns to give."""

    prompt: str
    completion: str
    record: str  # id of the fact


class Corpus(NamedTuple):
    """Facts and texts of a `DataConfig`."""

    known: list[Fact]  # part of pretraining; forgetting is measured on them
    new: list[Fact]  # kept out of pretraining
    new_held_out: list[Fact]  # the same, in a wording that is never trained on
    examples: list[Example]  # known facts for pretraining
    texts: list[Text]  # other texts for pretraining
    notes: list[str]  # on facts that were left out
    hash: str


# A known question of a file is pretrained both bare and in one of these frames, so that
# a model learns to see through a frame. A new one is taught bare, and evaluated also in
# a frame that is never trained on.
FILE_FRAMES = (
    "Question: {question}",
    "Please answer: {question}",
    "Tell me: {question}",
    "One more question: {question}",
)
HELD_OUT_FRAME = "Quiz: {question}"


def describe_corpus(config: DataConfig, corpus: Corpus) -> str:
    """Returns the sources and sizes of a corpus in one line."""
    paths = filter(None, (config.facts, config.background))
    source = " and ".join(paths) or "the synthetic world"
    return (
        f"{source}: {len(corpus.known):,} known facts, {len(corpus.new):,} kept back "
        f"as new, {len(corpus.texts):,} texts"
    )


def no_corpus() -> Corpus:
    """Returns the empty corpus, of a model that was imported without data."""
    return _corpus([], [], [], [], [], [])


def load_corpus(config: DataConfig) -> Corpus:
    """Returns the facts and texts that a configuration names.

    Raises:
      ConfigError: A file is missing or broken, or the facts cannot be split.
    """
    if config.facts is None and config.background is None:
        return _world_corpus(config)
    return _file_corpus(config)


def _world_corpus(config: DataConfig) -> Corpus:
    world = make_world(config.world)
    examples = []
    for fact, reworded in zip(world.known, world.known_reworded, strict=True):
        examples += [statement_example(fact, text) for text in fact.statements]
        examples += [question_example(fact), question_example(reworded)]
    return _corpus(world.known, world.new, world.new_held_out, examples, [], [])


def _file_corpus(config: DataConfig) -> Corpus:
    for key in ("facts", "background"):
        if (path := getattr(config, key)) is not None:
            require_file(f"data.{key}", path)
    facts, notes = [], []
    if config.facts is not None:
        facts, notes = without_repeats(read_facts(config.facts))
    texts = [] if config.background is None else read_texts(config.background)
    order = random.Random(0)  # the split belongs to the data, not to the run's seed
    facts = order.sample(facts, len(facts))
    num_new = round(len(facts) * config.new_fraction)
    new, known = facts[:num_new], facts[num_new:]
    require(
        config.facts is None
        or (len(known) > 0 and (len(new) > 0 or config.new_fraction == 0)),
        f"{config.facts}: {len(facts)} facts split into {len(known)} known and "
        f"{len(new)} new; both are needed (data.new_fraction={config.new_fraction})",
    )
    examples = []
    for fact in known:
        reworded = reword(fact, order.choice(FILE_FRAMES))
        examples += [question_example(fact), question_example(reworded)]
        texts += [Text(fact.id, statement) for statement in fact.statements]
    held_out = [reword(fact, HELD_OUT_FRAME) for fact in new]
    return _corpus(known, new, held_out, examples, texts, notes)


def _corpus(*parts: list) -> Corpus:
    *hashed, notes = parts
    digest = hashlib.sha256()
    for part in hashed:
        digest.update(repr([tuple(record) for record in part]).encode())
    return Corpus(*hashed, notes, digest.hexdigest()[:16])


def reword(fact: Fact, frame: str) -> Fact:
    """Returns the fact with its question in a frame, which holds {question}."""
    return fact._replace(question=frame.replace("{question}", fact.question))


def question_example(fact: Fact) -> Example:
    """Returns the question with the first answer as its completion."""
    return Example(fact.question, fact.answers[0], fact.id)


def statement_example(fact: Fact, statement: str) -> Example:
    """Returns a statement, split before the last answer in it.

    A statement without an answer is all completion.
    """
    found = [
        match.start()
        for answer in fact.answers
        for match in re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", statement)
    ]
    split = max(found, default=0)
    return Example(statement[:split].strip(), statement[split:], fact.id)


def taught_examples(fact: Fact, teach: Teach) -> list[Example]:
    """Returns the examples that teach a fact, its question first."""
    questions = [] if teach == "statements" else [question_example(fact)]
    if teach == "questions":
        return questions
    require(
        len(fact.statements) > 0,
        f'fact {fact.id!r} has no statements ("documents" in a file): '
        "teach questions instead",
    )
    return questions + [statement_example(fact, text) for text in fact.statements]


def as_taught(fact: Fact, teach: Teach) -> Fact:
    """Returns the fact with the prompt of its first taught example as its question."""
    prompts = [e.prompt for e in taught_examples(fact, teach) if e.prompt]
    require(
        len(prompts) > 0,
        f"fact {fact.id!r} has no statement that leads up to its answer: "
        "teach questions instead",
    )
    return fact._replace(question=prompts[0])


def without_repeats(facts: list[Fact]) -> tuple[list[Fact], list[str]]:
    """Returns the first fact of each question, and notes on the others.

    Another fact of the same question is a duplicate if it shares an answer with the
    first, or else a contradiction.
    """
    first_of: dict[str, Fact] = {}
    duplicates = contradictions = 0
    for fact in facts:
        first = first_of.setdefault(" ".join(fact.question.lower().split()), fact)
        if first is fact:
            continue
        answers = {answer.lower() for answer in first.answers}
        if answers.isdisjoint(answer.lower() for answer in fact.answers):
            contradictions += 1
        else:
            duplicates += 1
    notes = []
    if duplicates:
        notes.append(f"{duplicates} duplicate facts left out")
    if contradictions:
        notes.append(
            f"{contradictions} facts left out that contradict an earlier one "
            "(same question, no answer in common)"
        )
    return list(first_of.values()), notes
