"""How a fact is taught: examples, and the prompts that ask for it afterwards."""

import functools

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
    text, split, end = _fold(statement), 0, 0
    for answer in dict.fromkeys(map(_fold, fact.answers)):
        start = _last_place(text, answer, end)
        stop = start + len(answer)
        if start >= 0 and (stop > end or start < split):
            split, end = start, stop
    before = statement[:split]
    has_space = before == "" or before[-1].isspace()
    return Example(before.strip(), statement[split:], fact.id, has_space=has_space)


def _last_place(text: str, answer: str, least_end: int) -> int:
    """Returns where an answer that is a word and ends late enough starts, or -1."""
    end = len(text)
    while True:
        while not is_word(text, end, end):
            end -= 1
        start = text.rfind(answer, max(least_end - len(answer), 0), end)
        end = start + len(answer)
        if start < 0 or is_word(text, start, end):
            return start
        end -= 1


def _fold(text: str) -> str:
    """Returns a text of the same length without case."""
    return "".join(map(_fold_character, text))


@functools.cache
def _fold_character(character: str) -> str:
    lower = character.lower() if len(character.lower()) == 1 else character
    return lower.casefold() if len(lower.casefold()) == 1 else lower


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
