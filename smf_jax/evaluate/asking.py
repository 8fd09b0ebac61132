"""How a model is asked, as its training and the user say."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from smf_jax.config import BY_DEFAULT, AskConfig, PromptKind, require
from smf_jax.data.prompts import PromptFormat, turn_end
from smf_jax.data.records import Fact
from smf_jax.data.tokenizer import Tokenizer

LINE_END = "\n"


class Asking(NamedTuple):
    """How a model is asked."""

    form: PromptFormat
    config: AskConfig = BY_DEFAULT
    context: int | None = None  # longest text in tokens, if it is known

    def to_json(self) -> dict[str, Any]:
        """Returns what an answer depends on, for the record."""
        names = ("max_new_tokens", "temperature", "top_p", "seed")
        sampling = {name: getattr(self.config, name) for name in names}
        kind, shots, stop = self.form
        return {"prompt": kind, "shots": shots, "stop": stop} | sampling


def prompt_kind(
    wanted: Literal["auto", "plain", "few-shot", "chat"], tokenizer: Tokenizer
) -> PromptKind:
    """Returns how a model is asked unless it was taught otherwise.

    A model was trained to chat if its answers end as its chat template ends a turn.
    """
    if wanted != "auto":
        return wanted
    chats = tokenizer.template is not None and turn_end(tokenizer) in tokenizer.ends
    return "chat" if chats else "plain"


def make_asking(
    config: AskConfig,
    tokenizer: Tokenizer,
    shots: Sequence[Fact] = (),
    answers: Sequence[str] = (),
    context: int | None = None,
) -> Asking:
    """Returns how a model is asked.

    `shots` are facts whose questions and answers come before each question. By default
    an answer ends with its line, except in a chat or if one of `answers` has several.

    Raises:
      ConfigError: The model has no chat template, but is to be asked by it, or a plain
        prompt is to have shots.
    """
    kind = prompt_kind(config.prompt, tokenizer)
    require(
        kind != "chat" or tokenizer.template is not None,
        "the model has no chat template: ask it with --prompt plain or few-shot",
    )
    require(
        kind != "plain" or config.num_shots == 0,
        f"a plain prompt has no shots={config.shots} before it: ask with --prompt "
        "few-shot or chat",
    )
    stop = config.stop
    if stop is None:
        lines = any(LINE_END in answer for answer in answers)
        stop = () if kind == "chat" or lines else (LINE_END,)
    turns = tuple((fact.question, fact.answers[0]) for fact in shots)
    return Asking(PromptFormat(kind, turns, stop), config, context)
