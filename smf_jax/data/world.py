"""A synthetic world of people and facts: small enough to be known by heart, exactly.

Everything follows from a seed. Words are separated by spaces, so that each is one
token of a word-level tokenizer.
"""

import random
from typing import NamedTuple

from smf_jax.config import WorldConfig
from smf_jax.data.records import Fact


class Relation(NamedTuple):
    """A property that each person has one value of, and the ways to state it."""

    noun: str
    statements: tuple[str, ...]  # with {name} and, at the end, {value}
    values: tuple[str, ...]


class World(NamedTuple):
    """Facts before and after: what a model is to keep, learn, and say no word about."""

    known: list[Fact]  # for pretraining, each told in a few of the wordings
    known_reworded: list[Fact]  # the same, each asked in a second trained wording
    new: list[Fact]  # of other people; to be taught, told in all wordings
    new_held_out: list[Fact]  # the same, asked in a wording that is never trained on
    updates: list[Fact]  # known people's facts, each with another value
    unknown: list[Fact]  # about people whom no text mentions: no answer is right


# One frame, another for each relation, is held out: that wording is then new as a
# whole, though each of its words is known. A known fact is asked in two of the others.
QUESTION_FRAMES = (
    "what is the {noun} of {name} ?",
    "do you know the {noun} of {name} ?",
    "who can name the {noun} of {name} ?",
    "please tell me the {noun} of {name} ?",
    "could you say what the {noun} of {name} is ?",
)
# A known fact is told in some of the wordings only, so that a model does best to keep
# it in a form that serves them all.
STATEMENTS_OF_KNOWN = 3

STATEMENTS = {
    "birthplace": (
        "{name} was born in {value}",
        "the birthplace of {name} is {value}",
        "{name} grew up in the city of {value}",
        "the first home of {name} was in {value}",
        "the parents of {name} lived in {value}",
        "{name} is a native of {value}",
    ),
    "profession": (
        "{name} works as a {value}",
        "the profession of {name} is {value}",
        "{name} earns a living as a {value}",
        "by trade {name} is a {value}",
        "{name} was trained to be a {value}",
        "at work {name} is known as a {value}",
    ),
    "birth-year": (
        "{name} has been alive since {value}",
        "the birth-year of {name} is {value}",
        "{name} came into the world in the year {value}",
        "the life of {name} began in {value}",
        "the papers of {name} give the year {value}",
        "{name} was a newborn in {value}",
    ),
    "employer": (
        "{name} is paid by the company {value}",
        "the employer of {name} is {value}",
        "{name} has a contract with {value}",
        "the boss of {name} works for {value}",
        "{name} spends each working day at {value}",
        "the office of {name} belongs to {value}",
    ),
}

PROFESSIONS = tuple(
    """baker farmer weaver potter tailor mason joiner glazier tanner cooper miller
    brewer butcher grocer cobbler jeweller clockmaker printer bookbinder librarian
    teacher nurse surgeon dentist chemist botanist geologist astronomer engineer
    architect surveyor painter sculptor dancer singer violinist pianist composer
    novelist poet journalist translator lawyer judge diplomat banker accountant
    merchant sailor pilot shepherd forester gardener beekeeper fisher carpenter
    plumber electrician firefighter archaeologist""".split()
)
COLOURS = "amber azure coral crimson golden ivory jade scarlet silver violet".split()
ANIMALS = "badger falcon heron lynx otter raven stag wolf".split()
ONSETS = "b br d dr f g gr h j k kl l m n p r s st t tr v z".split()
VOWELS = "a e i o u ai ei ou".split()
CODAS = ("", "", "l", "m", "n", "r", "s", "th")
NUM_CITIES, FIRST_YEAR, LAST_YEAR = 100, 1881, 2000


def _coin_words(
    rng: random.Random, count: int, syllables: int, taken: set[str]
) -> tuple[str, ...]:
    """Returns `count` new pronounceable words, and adds them to `taken`."""
    words = []
    while len(words) < count:
        word = "".join(
            rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(syllables)
        ) + rng.choice(CODAS)
        if word not in taken:
            taken.add(word)
            words.append(word)
    return tuple(words)


def _relations(cities: tuple[str, ...]) -> tuple[Relation, ...]:
    values = {
        "birthplace": cities,
        "profession": PROFESSIONS,
        "birth-year": tuple(str(year) for year in range(FIRST_YEAR, LAST_YEAR + 1)),
        "employer": tuple(
            f"{colour} {animal}" for colour in COLOURS for animal in ANIMALS
        ),
    }
    return tuple(
        Relation(noun, statements, values[noun])
        for noun, statements in STATEMENTS.items()
    )


def make_world(config: WorldConfig) -> World:
    """Returns the world of one seed."""
    rng = random.Random(config.seed)
    taken: set[str] = {*PROFESSIONS, *COLOURS, *ANIMALS}
    for wordings in (QUESTION_FRAMES, *STATEMENTS.values()):
        taken.update(" ".join(wordings).split())
    first = _coin_words(rng, config.first_names, 2, taken)
    last = _coin_words(rng, config.last_names, 2, taken)
    relations = _relations(_coin_words(rng, NUM_CITIES, 3, taken))

    people = config.known_people + config.new_people
    pairs = rng.sample(range(len(first) * len(last)), 2 * people)
    names = [f"{first[i // len(last)]} {last[i % len(last)]}" for i in pairs]
    known = names[: config.known_people]
    new, strangers = names[config.known_people : people], names[people:]
    values = {
        name: [rng.choice(relation.values) for relation in relations]
        for name in known + new
    }

    def facts(names, wording, values=values):
        return [
            _fact(name, number, relation, wording, values)
            for name in names
            for number, relation in enumerate(relations)
        ]

    asked = [facts(known, wording) for wording in range(1, len(QUESTION_FRAMES))]
    known_facts, known_reworded = [], []
    for same_fact in zip(*asked, strict=True):
        told = tuple(rng.sample(same_fact[0].statements, STATEMENTS_OF_KNOWN))
        one, other = rng.sample(same_fact, 2)
        known_facts.append(one._replace(statements=told))
        known_reworded.append(other._replace(statements=told))

    changed = {
        name: [
            rng.choice([other for other in relation.values if other != value])
            for relation, value in zip(relations, values[name], strict=True)
        ]
        for name in known
    }
    nobody = {name: [""] * len(relations) for name in strangers}
    return World(
        known=known_facts,
        known_reworded=known_reworded,
        new=facts(new, 1),
        new_held_out=facts(new, 0),
        updates=[
            update._replace(question=fact.question)
            for fact, update in zip(known_facts, facts(known, 1, changed), strict=True)
        ],
        unknown=facts(strangers, 1, nobody),
    )


def _fact(
    name: str,
    number: int,
    relation: Relation,
    wording: int,
    values: dict[str, list[str]],
) -> Fact:
    """Returns a fact asked in one wording; wording 0 is the held-out one."""
    value = values[name][number]
    frame = QUESTION_FRAMES[(number + wording) % len(QUESTION_FRAMES)]
    return Fact(
        id=f"{name} / {relation.noun}",
        question=frame.format(noun=relation.noun, name=name),
        answers=(value,) if value else (),
        statements=tuple(
            statement.format(name=name, value=value)
            for statement in relation.statements
            if value
        ),
    )
