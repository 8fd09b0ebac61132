"""A synthetic world of people and facts, determined by a seed.

Words are separated by spaces, so that each is one token of a word-level tokenizer.
"""

import random
from typing import NamedTuple

from smf_jax.config import WorldConfig
from smf_jax.data.records import Fact


class World(NamedTuple):
    """Facts to pretrain on, and facts of other people to teach afterwards."""

    known: list[Fact]  # each with some of its statements
    known_reworded: list[Fact]  # the same, in a second question frame
    new: list[Fact]  # each with all of its statements
    new_held_out: list[Fact]  # the same, in a question frame that is never trained on


# The held-out frame differs by relation, so that each of its words is trained on in
# other relations. A known fact has two of the other frames.
QUESTION_FRAMES = (
    "what is the {noun} of {name} ?",
    "do you know the {noun} of {name} ?",
    "who can name the {noun} of {name} ?",
    "please tell me the {noun} of {name} ?",
    "could you say what the {noun} of {name} is ?",
)
# Fewer than there are, so that a model does best to store a fact in a form that serves
# every wording.
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

PROFESSIONS = """
    baker farmer weaver potter tailor mason joiner glazier tanner cooper miller
    brewer butcher grocer cobbler jeweller clockmaker printer bookbinder librarian
    teacher nurse surgeon dentist chemist botanist geologist astronomer engineer
    architect surveyor painter sculptor dancer singer violinist pianist composer
    novelist poet journalist translator lawyer judge diplomat banker accountant
    merchant sailor pilot shepherd forester gardener beekeeper fisher carpenter
    plumber electrician firefighter archaeologist
""".split()
COLOURS = "amber azure coral crimson golden ivory jade scarlet silver violet".split()
ANIMALS = "badger falcon heron lynx otter raven stag wolf".split()
ONSETS = "b br d dr f g gr h j k kl l m n p r s st t tr v z".split()
VOWELS = "a e i o u ai ei ou".split()
CODAS = ("", "", "l", "m", "n", "r", "s", "th")
NUM_CITIES, FIRST_YEAR, LAST_YEAR = 100, 1881, 2000


def make_world(config: WorldConfig) -> World:
    """Returns the world of a seed."""
    rng = random.Random(config.seed)
    used = {*PROFESSIONS, *COLOURS, *ANIMALS}
    for wordings in (QUESTION_FRAMES, *STATEMENTS.values()):
        used.update(" ".join(wordings).split())
    first = _coin_words(rng, config.first_names, 2, used)
    last = _coin_words(rng, config.last_names, 2, used)
    choices = {
        "birthplace": _coin_words(rng, NUM_CITIES, 3, used),
        "profession": PROFESSIONS,
        "birth-year": range(FIRST_YEAR, LAST_YEAR + 1),
        "employer": [f"{colour} {animal}" for colour in COLOURS for animal in ANIMALS],
    }

    people = config.known_people + config.new_people
    # Half of the names belong to nobody: a question about them has no right answer.
    pairs = rng.sample(range(len(first) * len(last)), 2 * people)
    names = [f"{first[i // len(last)]} {last[i % len(last)]}" for i in pairs[:people]]
    known, new = names[: config.known_people], names[config.known_people :]
    values = {
        name: {noun: str(rng.choice(choices[noun])) for noun in STATEMENTS}
        for name in names
    }

    def facts(names: list[str], frame: int) -> list[Fact]:
        return [
            _fact(name, noun, values[name][noun], frame + number)
            for name in names
            for number, noun in enumerate(STATEMENTS)
        ]

    framed = [facts(known, frame) for frame in range(1, len(QUESTION_FRAMES))]
    known_facts, known_reworded = [], []
    for same_fact in zip(*framed, strict=True):
        some = rng.sample(same_fact[0].statements, STATEMENTS_OF_KNOWN)
        one, other = rng.sample(same_fact, 2)
        known_facts.append(one._replace(statements=tuple(some)))
        known_reworded.append(other._replace(statements=tuple(some)))
    # Frame 0 is held out.
    return World(known_facts, known_reworded, facts(new, 1), facts(new, 0))


def _coin_words(
    rng: random.Random, count: int, syllables: int, used: set[str]
) -> list[str]:
    """Returns `count` new pronounceable words, and adds them to `used`."""
    words = []
    while len(words) < count:
        word = "".join(
            rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(syllables)
        ) + rng.choice(CODAS)
        if word not in used:
            used.add(word)
            words.append(word)
    return words


def _fact(name: str, noun: str, value: str, frame: int) -> Fact:
    question = QUESTION_FRAMES[frame % len(QUESTION_FRAMES)]
    return Fact(
        id=f"{name} / {noun}",
        question=question.format(noun=noun, name=name),
        answers=(value,),
        statements=tuple(
            statement.format(name=name, value=value) for statement in STATEMENTS[noun]
        ),
    )
