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

    known: list[Fact]  # for pretraining
    known_reworded: list[Fact]  # the same, each asked in a second trained wording
    new: list[Fact]  # of other people; to be taught
    new_held_out: list[Fact]  # the same, asked in a wording that is never trained on
    updates: list[Fact]  # known people's facts, each with another value
    unknown: list[Fact]  # about people whom no text mentions: no answer is right


# A known fact is asked in two frames; a third, another for each relation, is held out.
# That wording is then new as a whole, though each of its words is known.
QUESTION_FRAMES = (
    "what is the {noun} of {name} ?",
    "do you know the {noun} of {name} ?",
    "who can name the {noun} of {name} ?",
    "please tell me the {noun} of {name} ?",
)

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
    employers = tuple(f"{colour} {animal}" for colour in COLOURS for animal in ANIMALS)
    years = tuple(str(year) for year in range(FIRST_YEAR, LAST_YEAR + 1))
    return (
        Relation(
            "birthplace",
            (
                "{name} was born in {value}",
                "the birthplace of {name} is {value}",
                "{name} grew up in the city of {value}",
            ),
            cities,
        ),
        Relation(
            "profession",
            (
                "{name} works as a {value}",
                "the profession of {name} is {value}",
                "{name} earns a living as a {value}",
            ),
            PROFESSIONS,
        ),
        Relation(
            "birth-year",
            (
                "{name} has been alive since {value}",
                "the birth-year of {name} is {value}",
                "{name} came into the world in the year {value}",
            ),
            years,
        ),
        Relation(
            "employer",
            (
                "{name} is paid by the company {value}",
                "the employer of {name} is {value}",
                "{name} has a contract with {value}",
            ),
            employers,
        ),
    )


def make_world(config: WorldConfig) -> World:
    """Returns the world of one seed."""
    rng = random.Random(config.seed)
    taken: set[str] = {*PROFESSIONS, *COLOURS, *ANIMALS}
    taken.update(" ".join(QUESTION_FRAMES).split())
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

    def facts(names, wording, change=None):
        return [
            _fact(name, number, relation, wording, change or values)
            for name in names
            for number, relation in enumerate(relations)
        ]

    changed = {
        name: [
            rng.choice([other for other in relation.values if other != value])
            for relation, value in zip(relations, values[name], strict=True)
        ]
        for name in known
    }
    nobody = {name: [""] * len(relations) for name in strangers}
    return World(
        known=facts(known, 0),
        known_reworded=facts(known, 1),
        new=facts(new, 0),
        new_held_out=facts(new, len(QUESTION_FRAMES) - 1),
        updates=facts(known, 0, changed),
        unknown=facts(strangers, 0, nobody),
    )


def _fact(
    name: str,
    number: int,
    relation: Relation,
    wording: int,
    values: dict[str, list[str]],
) -> Fact:
    """Returns a fact asked in one wording; the last wording is the held-out one."""
    value = values[name][number]
    frame = QUESTION_FRAMES[(number + 1 + wording) % len(QUESTION_FRAMES)]
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
