"""Prompts: how a model is asked for a fact, and how the answer follows."""

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

from smf_jax.config import PromptKind, require
from smf_jax.data.chat_template import ChatTemplate, Turns
from smf_jax.data.tokenizer import (
    Tokenizer,
    control_tokens,
    encode_completion,
    encode_part,
    encode_prompt,
    encode_with_controls,
)


class Prompt(NamedTuple):
    """A prompt that asks for a fact."""

    fact: str  # id of the fact
    text: str
    answers: tuple[str, ...]  # that are accepted
    is_question: bool = True  # or else a text that the answer completes


class Example(NamedTuple):
    """A prompt, and the completion that a model learns to give."""

    prompt: str
    completion: str
    record: str  # id of the fact
    is_question: bool = False
    has_space: bool = True  # between the two


class PromptFormat(NamedTuple):
    """What stands around a question. Texts to be completed have nothing around them."""

    kind: PromptKind = "plain"
    shots: Turns = ()  # questions with answers, before each question
    stop: tuple[str, ...] = ()  # strings that end an answer


PLAIN = PromptFormat()
# Private characters, which stand for the words of a conversation.
MARK, MARKED = "\ue000{}\ue001", re.compile("\ue000(\\d+)\ue001")


def encode_asked(
    tokenizer: Tokenizer, form: PromptFormat, text: str, is_question: bool = True
) -> list[int]:
    """Returns the ids of a prompt, after which the answer begins."""
    if not is_question or form.kind == "plain":
        return encode_prompt(tokenizer, text)
    if form.kind == "chat":
        return _encode_chat(tokenizer, form.shots, text)
    shots = "".join(f"Question: {q}\nAnswer: {a}\n\n" for q, a in form.shots)
    return encode_prompt(tokenizer, f"{shots}Question: {text}\nAnswer:")


def encode_answered(
    tokenizer: Tokenizer, form: PromptFormat, example: Example
) -> tuple[list[int], list[int]]:
    """Returns the ids of a prompt, and those of its completion, with their end.

    Raises:
      ConfigError: The chat template does not continue a question by its answer.
    """
    text, completion = example.prompt, example.completion
    prompt = encode_asked(tokenizer, form, text, example.is_question)
    if not example.is_question or form.kind != "chat":
        before = None if example.has_space else text
        return prompt, encode_completion(tokenizer, completion, before)
    turns = [*form.shots, (text, completion)]
    answered = _encode_chat(tokenizer, turns)
    require(
        answered[: len(prompt)] == prompt,
        "the chat template does not continue a question by its answer: teach with "
        "prompt=plain",
    )
    rest, ends = answered[len(prompt) :], ends_of(tokenizer, form)
    length = next((n for n, token in enumerate(rest, 1) if token in ends), None)
    return prompt, [*rest, tokenizer.eos] if length is None else rest[:length]


def ends_of(tokenizer: Tokenizer, form: PromptFormat) -> tuple[int, ...]:
    """Returns the tokens that end an answer."""
    turn = turn_end(tokenizer) if form.kind == "chat" else None
    ends = tokenizer.ends if turn is None else (turn, *tokenizer.ends)
    # A control token is no text, in which a stop string could be found.
    controls = control_tokens(tokenizer)
    stops = (controls[string] for string in form.stop if string in controls)
    return tuple(dict.fromkeys((*ends, *stops)))


def turn_end(tokenizer: Tokenizer) -> int | None:
    """Returns the token by which the chat template ends an answer, if it does."""
    controls = control_tokens(tokenizer)
    found = re.search(_any_of(controls), _after_answer(_template_of(tokenizer)))
    return controls[found[0]] if found else None


@functools.cache
def _after_answer(template: ChatTemplate) -> str:
    """Returns what a template writes after an answer."""
    mark = MARK.format(0)
    return template.render([("question", mark)]).partition(mark)[2]


def _any_of(controls: Iterable[str]) -> str:
    """Returns a pattern of control tokens, of which the longest is meant."""
    longest_first = sorted(controls, key=len, reverse=True)
    return "|".join(map(re.escape, longest_first)) or "(?!)"


def _template_of(tokenizer: Tokenizer) -> ChatTemplate:
    require(
        tokenizer.template is not None,
        "the model has no chat template: ask it with prompt=plain or few-shot",
    )
    return tokenizer.template


def _encode_chat(
    tokenizer: Tokenizer, turns: Turns, question: str | None = None
) -> list[int]:
    """Returns the ids of a conversation; control tokens are the template's alone."""
    template, controls = _template_of(tokenizer), control_tokens(tokenizer)
    contents = [content for turn in turns for content in turn]
    contents += [] if question is None else [question]
    if not any(token in content for token in controls for content in contents):
        return encode_with_controls(tokenizer, template.render(turns, question))
    # Marks stand for the contents until the template's own controls have been found.
    marks = [MARK.format(index) for index in range(len(contents))]
    pairs = list(zip(marks[::2], marks[1::2], strict=False))
    text = template.render(pairs, None if question is None else marks[-1])
    ids = []
    for part in re.split(f"({_any_of(controls)})", text):
        if part in controls:
            ids.append(controls[part])
            continue
        part = re.sub(MARKED, lambda mark: contents[int(mark[1])], part)
        ids += encode_part(tokenizer, part, is_first=not ids)
    return ids
