"""How a fact is taught: examples, and the prompts that ask for it afterwards."""

import re

from smf_jax.config import Teach, require
from smf_jax.data.prompts import Example, Prompt
from smf_jax.data.records import Fact
from smf_jax.data.scripts import has_space_after, is_word

HELD_OUT_FRAME = "Quiz: {question}"  # never trained on


def question_example(fact: Fact) -> Example:
    """Returns the question with the first answer as its completion."""
    has_space = has_space_after(fact.question)
    return Example(fact.question, fact.answers[0], fact.id, True, has_space)


def wording_examples(fact: Fact) -> list[Example]:
    """Returns each wording with the first answer as its completion."""
    return [
        Example(text, fact.answers[0], fact.id, has_space=has_space_after(text))
        for text in fact.wordings
    ]


def statement_example(fact: Fact, statement: str) -> Example:
    """Returns a statement, split before the last answer in it.

    Of several aliases at that place the longest is meant. A statement without an answer
    is all completion.
    """
    places = [
        match.span()
        for answer in fact.answers
        for match in re.finditer(re.escape(answer), statement, re.IGNORECASE)
        if is_word(statement, *match.span())
    ]
    end = max((end for _, end in places), default=0)
    split = min((start for start, stop in places if stop == end), default=0)
    before = statement[:split]
    has_space = before == "" or before[-1].isspace()
    return Example(before.strip(), statement[split:], fact.id, has_space=has_space)


def taught_examples(fact: Fact, teach: Teach) -> list[Example]:
    """Returns the examples that teach a fact, its question first.

    Raises:
      ConfigError: The fact has nothing of the kind that `teach` names.
    """
    examples = []
    if teach != "statements":
        examples += [question_example(fact)] if fact.question else []
        examples += wording_examples(fact)
    if teach != "questions":
        examples += [statement_example(fact, text) for text in fact.statements]
    require(
        len(examples) > 0,
        f"fact {fact.id!r} has no statements: teach questions instead",
    )
    return examples


def taught_prompts(fact: Fact, teach: Teach) -> list[Prompt]:
    """Returns the prompts of a fact that it is taught by.

    These are the question and the wordings, or else the first statement that leads up
    to the answer, whose own ending is accepted, too.

    Raises:
      ConfigError: No statement leads up to the answer.
    """
    examples = [e for e in taught_examples(fact, teach) if e.prompt]
    require(
        len(examples) > 0,
        f"fact {fact.id!r} has no statement that leads up to its answer: teach "
        "questions instead",
    )
    if teach == "statements":
        first = examples[0]
        answers = tuple(dict.fromkeys((*fact.answers, first.completion)))
        return [Prompt(fact.id, first.prompt, answers, False)]
    asked = examples[: bool(fact.question) + len(fact.wordings)]
    return [Prompt(fact.id, e.prompt, fact.answers, e.is_question) for e in asked]


def held_out_prompts(fact: Fact, teach: Teach) -> list[Prompt]:
    """Returns prompts of a fact that it is never taught by.

    These are the wordings that its file holds out, or else its question: as it stands
    if only statements are taught, or in a frame that is trained on nowhere.
    """
    if fact.held_out:
        return [Prompt(fact.id, text, fact.answers, False) for text in fact.held_out]
    if not fact.question:
        return []
    frame = "{question}" if teach == "statements" else HELD_OUT_FRAME
    question = frame.replace("{question}", fact.question)
    return [Prompt(fact.id, question, fact.answers)]


def known_prompt(fact: Fact) -> Prompt:
    """Returns the prompt that a known fact is asked by."""
    return Prompt(fact.id, fact.name, fact.answers, bool(fact.question))
