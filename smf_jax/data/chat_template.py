"""Chat templates: Jinja programs that write a conversation as a model was taught it."""

import functools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from smf_jax.config import ConfigError

# What templates print as today's date, so that no score depends on the day.
DATE = "26 Jul 2024"
# Marks what a model is trained on, which is a mere scope where it is asked.
GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(?=\s*[-+]?%\})")
# Of a program that somebody else wrote.
FAILURES = (
    *(jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError),
)
Turns = Sequence[tuple[str, str]]  # questions with their answers


class ChatTemplate(NamedTuple):
    """A template, with the special tokens that it may name."""

    source: str
    tokens: tuple[tuple[str, str], ...] = ()  # such as ("bos_token", "<s>")

    def render(self, turns: Turns, question: str | None = None) -> str:
        """Returns the text of a conversation.

        With a question it ends where the model's answer begins, and without after the
        end of the last turn.

        Raises:
          ConfigError: The template cannot be used.
        """
        messages = [
            {"role": role, "content": content}
            for turn in turns
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]
        if question is not None:
            messages.append({"role": "user", "content": question})
        try:
            return _compile(self.source).render(
                messages=messages,
                add_generation_prompt=question is not None,
                tools=None,
                documents=None,
                **dict(self.tokens),
            )
        except FAILURES as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"the chat template cannot be used: {reason}") from error


@functools.cache
def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: DATE
    return environment.from_string(GENERATION.sub(r"\1\2with", source))


def _to_json(value: Any, ensure_ascii: bool = False, **options) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
