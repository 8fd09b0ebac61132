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

TINY = WorldConfig(known_people=6, new_people=3, first_names=8, last_names=9)


@pytest.fixture(scope="module")
def world():
    return make_world(TINY)


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(DataConfig(world=TINY))


def name(fact) -> str:
    return fact.id.split(" / ")[0]


def relation(fact) -> str:
    return fact.id.split(" / ")[1]


def wording(fact) -> str:
    """Returns the question with a blank for the person, the relation left in."""
    return fact.question.replace(name(fact), "___")


def words(texts) -> set[str]:
    return {word for text in texts for word in text.split()}


def test_the_same_seed_makes_the_same_world(world):
    assert make_world(TINY) == world


def test_another_seed_makes_another_world(world):
    other = make_world(
        WorldConfig(known_people=6, new_people=3, first_names=8, last_names=9, seed=1)
    )

    assert {name(fact) for fact in other.known}.isdisjoint(map(name, world.known))


def test_a_person_has_four_facts_one_of_each_relation(world):
    assert len(world.known) == 4 * TINY.known_people
    assert len(world.new) == 4 * TINY.new_people
    assert len({fact.id for fact in world.known + world.new}) == 4 * (6 + 3)
    assert len(set(map(relation, world.known))) == 4


def test_no_two_people_share_a_name(world):
    groups = (world.known, world.new, world.unknown)

    assert sum(len(set(map(name, group))) for group in groups) == len(
        {name(fact) for group in groups for fact in group}
    )


def test_every_question_is_asked_once(world):
    asked = [fact.question for fact in world.known + world.known_reworded]

    assert len(asked) == len(set(asked))


def test_a_statement_names_the_person_and_ends_with_the_answer(world):
    for fact in world.known + world.new + world.updates:
        (answer,) = fact.answers
        for statement in fact.statements:
            assert name(fact) in statement
            assert statement.endswith(" " + answer)


def test_a_known_fact_is_told_in_some_wordings_and_a_new_one_in_all(world):
    for fact in world.known:
        assert len(set(fact.statements)) == STATEMENTS_OF_KNOWN
    for fact in world.new:
        assert len(set(fact.statements)) == len(STATEMENTS[relation(fact)])


def test_known_facts_are_not_all_told_in_the_same_wordings(world):
    told = {
        frozenset(
            text.replace(name(fact), "").removesuffix(fact.answers[0])
            for text in fact.statements
        )
        for fact in world.known
        if relation(fact) == "profession"
    }

    assert len(told) > 1


def test_a_rewording_asks_for_the_same_in_other_words(world):
    for one, other in zip(world.known, world.known_reworded, strict=True):
        assert one._replace(question="") == other._replace(question="")
        assert wording(one) != wording(other)


def test_the_held_out_questions_ask_for_the_new_facts(world):
    for one, other in zip(world.new, world.new_held_out, strict=True):
        assert one._replace(question="") == other._replace(question="")


def test_an_update_gives_a_known_question_another_answer(world):
    for known, update in zip(world.known, world.updates, strict=True):
        assert (known.id, known.question) == (update.id, update.question)
        assert set(known.answers).isdisjoint(update.answers)


def test_nothing_is_said_about_unknown_people(world, corpus):
    said = [f"{e.prompt} {e.completion}" for e in corpus.examples]
    said += [text for fact in world.new + world.updates for text in fact.statements]

    for fact in world.unknown:
        assert fact.answers == fact.statements == ()
        assert not any(name(fact) in text for text in said)


def test_nothing_is_said_about_new_people_in_pretraining(world, corpus):
    said = [f"{e.prompt} {e.completion}" for e in corpus.examples]

    for fact in world.new:
        assert not any(name(fact) in text for text in said)


def test_no_relation_is_asked_in_its_held_out_wording_in_pretraining(world, corpus):
    people = {name(fact) for fact in world.known}
    asked = set()
    for prompt in (example.prompt for example in corpus.examples):
        (person,) = (one for one in people if one in prompt)
        asked.add(prompt.replace(person, "___"))

    assert asked.isdisjoint(map(wording, world.new_held_out))
    assert {wording(fact) for fact in world.known + world.known_reworded} <= asked


def test_a_frame_that_is_held_out_for_one_relation_is_trained_for_others(world):
    def frame(fact):
        return wording(fact).replace(relation(fact), "{noun}")

    held_out = {frame(fact) for fact in world.new_held_out}
    trained = {frame(fact) for fact in world.known + world.known_reworded}

    assert held_out <= trained
    assert len(held_out) == len(STATEMENTS)
    assert len(trained) == len(QUESTION_FRAMES)


def test_every_word_of_a_held_out_question_was_seen_in_pretraining(world, corpus):
    seen = words(f"{e.prompt} {e.completion}" for e in corpus.examples)
    names = words(map(name, world.new))

    assert words(fact.question for fact in world.new_held_out) <= seen | names


def test_every_word_is_a_token_of_a_tokenizer_of_the_world(world, corpus):
    texts = [f"{e.prompt} {e.completion}" for e in corpus.examples]
    for fact in corpus.new:
        texts += [fact.question, *fact.answers, *fact.statements]
    tokenizer = train_tokenizer(texts, "word", vocab_size=4096)

    for fact in world.known + world.new + world.new_held_out:
        for text in (fact.question, *fact.answers, *fact.statements):
            ids = encode_prompt(tokenizer, text)
            assert len(ids) == len(text.split())
            assert UNKNOWN not in ids


@pytest.mark.parametrize("seed", [2451, 201])
def test_nobody_is_called_by_a_word_of_the_wordings(seed):
    # The seeds are such as would coin "name", of the questions, and "home".
    world = make_world(WorldConfig(known_people=1000, new_people=1, seed=seed))
    wordings = [*QUESTION_FRAMES, *itertools.chain(*STATEMENTS.values())]

    assert words(map(name, world.known)).isdisjoint(words(wordings))
