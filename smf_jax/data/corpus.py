"""What a run is about: facts to keep, facts to teach, and the text of pretraining."""

import hashlib
import random
import re
from collections import defaultdict
from typing import NamedTuple

from smf_jax.config import DataConfig, Teach, require
from smf_jax.data.records import Fact, Text, read_facts, read_texts
from smf_jax.data.world import make_world


class Example(NamedTuple):
    """A text in two parts, the second of which a model should be able to complete."""

    prompt: str
    completion: str
    record: str  # id of the fact


class Corpus(NamedTuple):
    """Facts and texts of a `DataConfig`."""

    known: list[Fact]  # part of pretraining; forgetting is measured on them
    new: list[Fact]  # kept out of pretraining
    new_held_out: list[Fact]  # the same, asked in a wording that is never trained on
    examples: list[Example]  # what pretraining reads of the known facts
    texts: list[Text]  # what else it reads
    notes: list[str]  # what was noticed and decided on the way
    hash: str


# A known question of a file is pretrained as it stands and in one of these frames, so
# that a model learns to see through a frame. A new one is taught as it stands, and also
# asked in another frame, which no training uses.
FILE_FRAMES = (
    "Question: {question}",
    "Please answer: {question}",
    "Tell me: {question}",
    "One more question: {question}",
)
HELD_OUT_FRAME = "Quiz: {question}"


def describe_corpus(config: DataConfig, corpus: Corpus) -> str:
    """Returns in a line what a corpus is of."""
    world = config.facts is None and config.background is None
    sources = filter(None, (config.facts, config.background))
    source = "the synthetic world" if world else " and ".join(sources)
    return (
        f"{source}: {len(corpus.known):,} known facts, {len(corpus.new):,} kept back "
        f"as new, {len(corpus.texts):,} texts"
    )


def no_corpus() -> Corpus:
    """Returns what a model is about that came without data: nothing."""
    return _corpus([], [], [], [], [], [])


def load_corpus(config: DataConfig) -> Corpus:
    """Returns the facts and texts that a configuration names.

    Raises:
      ConfigError: A file is missing or broken, or leaves nothing to learn or keep.
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
    facts, notes = [], []
    if config.facts is not None:
        facts, notes = without_repeats(read_facts(config.facts))
    texts = [] if config.background is None else read_texts(config.background)
    order = random.Random(0)  # the split is part of the task, not of the run
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
        texts += [Text(fact.id, document) for document in fact.statements]
    held_out = [reword(fact, HELD_OUT_FRAME) for fact in new]
    return _corpus(known, new, held_out, examples, texts, notes)


def _corpus(known, new, new_held_out, examples, texts, notes) -> Corpus:
    digest = hashlib.sha256()
    for part in (known, new, new_held_out, examples, texts):
        digest.update(repr([tuple(record) for record in part]).encode())
    return Corpus(
        known, new, new_held_out, examples, texts, notes, digest.hexdigest()[:16]
    )


def reword(fact: Fact, frame: str) -> Fact:
    """Returns the fact asked in the wording of `frame`, which holds {question}."""
    return fact._replace(question=frame.replace("{question}", fact.question))


def question_example(fact: Fact) -> Example:
    """Returns the question, to be completed by the first answer."""
    return Example(fact.question, fact.answers[0], fact.id)


def statement_example(fact: Fact, statement: str) -> Example:
    """Returns a statement split before the last place where it gives an answer.

    One that gives none is completed whole, from nothing.
    """
    found = [
        match.start()
        for answer in fact.answers
        for match in re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", statement)
    ]
    place = max(found, default=-1)
    if place < 0:
        return Example("", statement, fact.id)
    return Example(statement[:place].strip(), statement[place:], fact.id)


def taught_examples(fact: Fact, teach: Teach) -> list[Example]:
    """Returns the texts that teach a fact, that of its question first.

    Raises:
      ConfigError: Statements are to be taught and there are none.
    """
    questions = [] if teach == "statements" else [question_example(fact)]
    if teach == "questions":
        return questions
    require(
        len(fact.statements) > 0,
        f'fact {fact.id!r} has no statements ("documents" in a file): '
        "teach questions instead",
    )
    statements = [statement_example(fact, text) for text in fact.statements]
    return questions + statements


def as_taught(fact: Fact, teach: Teach) -> Fact:
    """Returns the fact asked in the wording that teaches it.

    Raises:
      ConfigError: No text that teaches it leads up to its answer.
    """
    examples = taught_examples(fact, teach)
    prompts = [example.prompt for example in examples if example.prompt]
    require(
        len(prompts) > 0,
        f"fact {fact.id!r} has no statement that leads up to its answer: "
        "teach questions instead",
    )
    return fact._replace(question=prompts[0])


def without_repeats(facts: list[Fact]) -> tuple[list[Fact], list[str]]:
    """Returns the facts with each question once, and notes on what was left out.

    A question that comes again with an answer in common is a duplicate; without one
    it contradicts the first. The first is kept in either case.
    """
    by_question = defaultdict(list)
    for fact in facts:
        by_question[" ".join(fact.question.lower().split())].append(fact)
    duplicates = contradictions = 0
    for first, *again in by_question.values():
        answers = {answer.lower() for answer in first.answers}
        for fact in again:
            if answers & {answer.lower() for answer in fact.answers}:
                duplicates += 1
            else:
                contradictions += 1
    notes = []
    if duplicates:
        notes.append(f"{duplicates} duplicate facts left out")
    if contradictions:
        notes.append(
            f"{contradictions} facts left out that contradict an earlier one "
            "(same question, no answer in common)"
        )
    return [first for first, *_ in by_question.values()], notes
