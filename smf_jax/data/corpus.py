"""The corpus of a run: known facts, new facts, and the texts of pretraining."""

import hashlib
import random
from collections.abc import Sequence
from typing import NamedTuple

from smf_jax.config import DataConfig, require, require_source
from smf_jax.data.examples import question_example, statement_example, wording_examples
from smf_jax.data.prompts import Example
from smf_jax.data.records import Fact, Text, read_facts, read_texts
from smf_jax.data.world import make_world


class Corpus(NamedTuple):
    """Facts and texts of a `DataConfig`."""

    known: list[Fact]  # part of pretraining; forgetting is measured on them
    new: list[Fact]  # kept out of pretraining
    examples: list[Example]  # known facts for pretraining
    texts: list[Text]  # other texts for pretraining
    notes: list[str]  # on facts that were left out, and wordings that were filled
    hash: str


# A known question of a file is pretrained both bare and in one of these frames, so that
# a model learns to see through a frame.
FILE_FRAMES = (
    "Question: {question}",
    "Please answer: {question}",
    "Tell me: {question}",
    "One more question: {question}",
)


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
    return _corpus([], [], [], [], [])


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
    new = [
        fact._replace(held_out=(reworded.question,))
        for fact, reworded in zip(world.new, world.new_held_out, strict=True)
    ]
    return _corpus(world.known, new, examples, [], [])


def _file_corpus(config: DataConfig) -> Corpus:
    for key in ("facts", "patterns", "background"):
        if (path := getattr(config, key)) is not None:
            require_source(f"data.{key}", path)
    facts, notes = [], []
    if config.facts is not None:
        facts, notes = load_facts(config.facts, config.patterns, config.fields)
    texts = []
    if config.background is not None:
        texts = read_texts(config.background, config.fields)
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
        if fact.question:
            frame = order.choice(FILE_FRAMES)
            framed = frame.replace("{question}", fact.question)
            examples += [question_example(fact)]
            examples += [question_example(fact._replace(question=framed))]
        examples += wording_examples(fact)
        texts += [Text(fact.id, statement) for statement in fact.statements]
    return _corpus(known, new, examples, texts, notes)


def _corpus(*parts: list) -> Corpus:
    *hashed, notes = parts
    digest = hashlib.sha256()
    for part in hashed:
        digest.update(repr([tuple(record) for record in part]).encode())
    return Corpus(*hashed, notes, digest.hexdigest()[:16])


def load_facts(
    source: str, patterns: str | None, fields: str | None = None
) -> tuple[list[Fact], list[str]]:
    """Returns the facts of a file or data set, each once, and notes on them.

    Raises:
      ConfigError: A file is missing or broken.
    """
    facts, notes = without_repeats(read_facts(source, patterns, fields))
    worded = [fact for fact in facts if fact.wordings or fact.held_out]
    if worded:
        taught = sum(len(fact.wordings) for fact in worded)
        held_out = sum(len(fact.held_out) for fact in worded)
        notes.append(
            f"{len(worded):,} facts have {taught:,} wordings to teach, and "
            f"{held_out:,} held out"
        )
    return facts, notes


def load_kept(sources: Sequence[str], fields: str | None = None) -> list[Fact]:
    """Returns the facts of several files, each once, with ids of their own.

    Raises:
      ConfigError: A file is missing or broken.
    """
    facts: dict[str, Fact] = {}
    for number, source in enumerate(sources, 1):
        require_source("keep.facts", source)
        for fact in read_facts(source, None, fields):
            id = fact.id
            while id in facts:  # of an earlier file
                id = f"{id} (file {number})"
            facts[id] = fact._replace(id=id)
    return without_repeats(list(facts.values()))[0]


def with_texts(corpus: Corpus, source: str | None, fields: str | None = None) -> Corpus:
    """Returns a corpus with the texts of a file in place of its own, if there is one.

    Raises:
      ConfigError: The file is missing or broken.
    """
    if source is None:
        return corpus
    require_source("keep.texts", source)
    texts = read_texts(source, fields)
    digest = hashlib.sha256(f"{corpus.hash} {[tuple(t) for t in texts]}".encode())
    return corpus._replace(texts=texts, hash=digest.hexdigest()[:16])


def without_repeats(facts: list[Fact]) -> tuple[list[Fact], list[str]]:
    """Returns the first fact of each question, and notes on the others.

    Another fact of the same question is a duplicate if it shares an answer with the
    first, or else a contradiction. A fact without a question is told by its first
    wording.
    """
    first_of: dict[str, Fact] = {}
    duplicates = contradictions = 0
    for fact in facts:
        first = first_of.setdefault(" ".join(fact.name.lower().split()), fact)
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
