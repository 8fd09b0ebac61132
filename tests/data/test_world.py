import itertools

import pytest

from smf_jax.config import DataConfig, WorldConfig
from smf_jax.data.corpus import load_corpus
from smf_jax.data.tokenizer import UNKNOWN, encode_prompt, train_tokenizer
from smf_jax.data.world import (
    QUESTION_FRAMES,
    STATEMENTS,
    STATEMENTS_OF_KNOWN,
    make_world,
)

SIZES = {"known_people": 6, "new_people": 3, "first_names": 8, "last_names": 9}
TINY = WorldConfig(**SIZES)


@pytest.fixture(scope="module")
def world():
    return make_world(TINY)


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(DataConfig(world=TINY))


@pytest.fixture(scope="module")
def pretrained(corpus) -> list[str]:
    """Returns the texts of pretraining."""
    return [f"{e.prompt} {e.completion}" for e in corpus.examples]


def name(fact) -> str:
    return fact.id.split(" / ")[0]


def relation(fact) -> str:
    return fact.id.split(" / ")[1]


def frame(fact) -> str:
    """Returns the question with a blank for the person, the relation left in."""
    return fact.question.replace(name(fact), "___")


def words(texts) -> set[str]:
    return {word for text in texts for word in text.split()}


def test_a_seed_determines_the_world(world):
    other = make_world(WorldConfig(**SIZES, seed=1))

    assert make_world(TINY) == world
    assert {name(fact) for fact in other.known}.isdisjoint(map(name, world.known))


def test_a_person_has_one_fact_of_each_relation(world):
    facts = world.known + world.new

    assert len(world.known) == 4 * TINY.known_people
    assert len({fact.id for fact in facts}) == len(facts) == 4 * (6 + 3)
    assert len(set(map(relation, world.known))) == 4


def test_names_and_questions_do_not_repeat(world):
    questions = [fact.question for fact in world.known + world.known_reworded]

    assert len(questions) == len(set(questions))
    assert set(map(name, world.known)).isdisjoint(map(name, world.new))


def test_a_statement_names_the_person_and_ends_with_the_answer(world):
    for fact in world.known + world.new:
        (answer,) = fact.answers
        for statement in fact.statements:
            assert name(fact) in statement
            assert statement.endswith(" " + answer)


def test_a_known_fact_has_some_statements_and_a_new_one_all(world):
    for fact in world.known:
        assert len(set(fact.statements)) == STATEMENTS_OF_KNOWN
    for fact in world.new:
        assert len(set(fact.statements)) == len(STATEMENTS[relation(fact)])


def test_known_facts_have_different_statements(world):
    wordings = {
        frozenset(
            text.replace(name(fact), "").removesuffix(fact.answers[0])
            for text in fact.statements
        )
        for fact in world.known
        if relation(fact) == "profession"
    }

    assert len(wordings) > 1


def test_a_reworded_fact_differs_in_its_question_alone(world):
    pairs = [(world.known, world.known_reworded), (world.new, world.new_held_out)]
    for facts, reworded in pairs:
        for one, other in zip(facts, reworded, strict=True):
            assert one._replace(question="") == other._replace(question="")
            assert frame(one) != frame(other)


def test_pretraining_does_not_mention_new_people(world, pretrained):
    for fact in world.new:
        assert not any(name(fact) in text for text in pretrained)


def test_pretraining_asks_no_relation_in_its_held_out_frame(world, corpus):
    people = {name(fact) for fact in world.known}
    frames = set()
    for prompt in (example.prompt for example in corpus.examples):
        (person,) = (one for one in people if one in prompt)
        frames.add(prompt.replace(person, "___"))

    assert frames.isdisjoint(map(frame, world.new_held_out))
    assert {frame(fact) for fact in world.known + world.known_reworded} <= frames


def test_a_frame_held_out_for_one_relation_is_trained_for_others(world):
    def general(fact):
        return frame(fact).replace(relation(fact), "{noun}")

    held_out = {general(fact) for fact in world.new_held_out}
    trained = {general(fact) for fact in world.known + world.known_reworded}

    assert held_out <= trained
    assert len(held_out) == len(STATEMENTS)
    assert len(trained) == len(QUESTION_FRAMES)


def test_every_word_of_a_held_out_question_is_in_pretraining(world, pretrained):
    names = words(map(name, world.new))

    assert words(fact.question for fact in world.new_held_out) <= (
        words(pretrained) | names
    )


def test_every_word_is_a_token_of_the_tokenizer_of_the_world(world, pretrained):
    texts = list(pretrained)
    for fact in world.new:
        texts += [fact.question, *fact.answers, *fact.statements]
    tokenizer = train_tokenizer(texts, "word", vocab_size=4096)

    for fact in world.known + world.new + world.new_held_out:
        for text in (fact.question, *fact.answers, *fact.statements):
            ids = encode_prompt(tokenizer, text)
            assert len(ids) == len(text.split())
            assert UNKNOWN not in ids


@pytest.mark.parametrize("seed", [2451, 201])
def test_no_name_is_a_word_of_a_question_or_statement(seed):
    # These seeds would coin "name", of the questions, and "home".
    world = make_world(WorldConfig(known_people=1000, new_people=1, seed=seed))
    wordings = [*QUESTION_FRAMES, *itertools.chain(*STATEMENTS.values())]

    assert words(map(name, world.known)).isdisjoint(words(wordings))
