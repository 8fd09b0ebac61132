"""Asks a model for the facts of a file: those it knows, and those to be taught."""

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Console

from smf_jax.config import AskConfig, TeachConfig, require
from smf_jax.data.batches import encode_example
from smf_jax.data.examples import (
    held_out_prompts,
    known_prompt,
    taught_examples,
    taught_prompts,
)
from smf_jax.data.prompts import Prompt, PromptFormat
from smf_jax.data.records import Fact
from smf_jax.evaluate.answers import PROMPTS_PER_BATCH, answer, longest_answer
from smf_jax.evaluate.asking import Asking
from smf_jax.evaluate.questions import NO_QUESTIONS
from smf_jax.evaluate.scores import is_right
from smf_jax.progress import progress
from smf_jax.runs import Run
from smf_jax.verbs.evaluate import asking_of

ENOUGH = 400  # kept facts: when so many are found, no others are asked


class Asked(NamedTuple):
    """What a model knew before it was taught."""

    new: list[Fact]  # of the file, to be taught
    known: list[Fact]  # of the file, as the model answers them
    kept: list[Fact]  # of other files, as the model answers them
    tried: int  # facts of other files that were asked
    seq_len: int  # tokens of the longest text that teaches a new fact, a multiple of 8


def ask_facts(
    config: TeachConfig,
    run: Run,
    facts: Sequence[Fact],
    others: Sequence[Fact],
    console: Console,
) -> Asked:
    """Asks a run for every fact in each of its wordings, and for others to be kept.

    Raises:
      ConfigError: A fact is longer than the context, the model knows all facts, or none
        of the files of `config.keep`.
    """
    asking = _asking(config, run, [*facts, *others])
    lengths = [_length(run, fact, asking.form, config.facts) for fact in facts]
    prompts = [_prompts(fact, asking.form) for fact in facts]
    right = _right(run, asking, prompts, console)
    new = [n for n, prompt in enumerate(right) if prompt is None]
    known = [
        _as_asked(fact, prompt)
        for fact, prompt in zip(facts, right, strict=True)
        if prompt is not None
    ]
    require(
        len(new) > 0,
        f"{config.facts}: the model knows all of the {len(facts):,} facts: there is "
        "nothing to teach",
    )
    names = {fact.name.lower() for fact in facts}
    others = [fact for fact in others if fact.name.lower() not in names]
    kept, tried = _kept(config, run, asking, others, console)
    require(
        bool(kept) or not config.keep,
        f"--keep {' '.join(config.keep)}: the model knows none of the {tried:,} facts, "
        "so there is nothing to keep: name facts that it knows, or leave --keep out",
    )
    seq_len = -(-max(lengths[n] for n in new) // 8) * 8
    return Asked([facts[n] for n in new], known, kept, tried, seq_len)


def _asking(config: TeachConfig, run: Run, facts: Sequence[Fact]) -> Asking:
    prompts = [Prompt(fact.id, fact.name, fact.answers) for fact in facts]
    questions = NO_QUESTIONS._replace(known=prompts)
    return asking_of(run, AskConfig(prompt=config.prompt), questions)


def _prompts(fact: Fact, form: PromptFormat) -> list[Prompt]:
    """Returns every prompt that a fact is taught by, or will be asked by."""
    prompts = taught_prompts(fact, "questions") + held_out_prompts(fact, "questions")
    return [_as_text(prompt, form) for prompt in prompts]


def _as_text(prompt: Prompt, form: PromptFormat) -> Prompt:
    """Returns a plain question as the text that it is: the model goes on after it."""
    is_question = prompt.is_question and form.kind != "plain"
    return prompt._replace(is_question=is_question)


def _length(run: Run, fact: Fact, form: PromptFormat, source: str) -> int:
    """Returns the tokens of the longest text that teaches a fact."""
    examples = taught_examples(fact, "questions")
    rows = (encode_example(run.tokenizer, e, "answer", form=form) for e in examples)
    longest = max(len(row["tokens"]) for row in rows)
    context = run.lineage.context_length
    require(
        context is None or longest <= context,
        f"{source}: fact {fact.id!r} has {longest:,} tokens with its answer, and the "
        f"context of the model is {context} tokens: shorten it or leave it out",
    )
    return longest


def _right(
    run: Run,
    asking: Asking,
    prompts: Sequence[Sequence[Prompt]],
    console: Console,
    title: str = "asking",
) -> list[Prompt | None]:
    """Returns of each fact the first prompt that is answered right, if any is."""
    flat = [prompt for of_fact in prompts for prompt in of_fact]
    if not flat:
        return [None] * len(prompts)
    form, config, context = asking
    length = longest_answer(run.tokenizer, flat, form)
    about = (run.model, run.tokenizer, flat, length, form, config, context)
    with progress(title, len(flat), console) as tell:
        replies = iter(answer(*about, tell))
    return [_first_right(zip(of_fact, replies, strict=False)) for of_fact in prompts]


def _first_right(pairs: Iterable[tuple[Prompt, str]]) -> Prompt | None:
    right = [prompt for prompt, reply in pairs if is_right(reply, prompt)]
    return right[0] if right else None


def _kept(
    config: TeachConfig,
    run: Run,
    asking: Asking,
    others: Sequence[Fact],
    console: Console,
) -> tuple[list[Fact], int]:
    """Returns facts that a run knows, and how many were asked for them."""
    others = random.Random(config.seed).sample(others, len(others))
    kept, tried = [], 0
    while tried < len(others) and len(kept) < ENOUGH:
        part = others[tried : tried + PROMPTS_PER_BATCH]
        prompts = [_ways(fact, asking.form) for fact in part]
        title = f"asking for facts to keep, from {tried:,} of {len(others):,} on"
        right = _right(run, asking, prompts, console, title)
        pairs = zip(part, right, strict=True)
        kept += [
            _as_asked(fact, prompt) for fact, prompt in pairs if prompt is not None
        ]
        tried += len(part)
    return kept[:ENOUGH], tried


def _ways(fact: Fact, form: PromptFormat) -> list[Prompt]:
    """Returns how a fact to be kept may be asked: not every question is one."""
    asked = _as_text(known_prompt(fact), form)
    if not asked.is_question or fact.question.endswith("?"):
        return [asked]
    return [asked, asked._replace(is_question=False)]


def _as_asked(fact: Fact, prompt: Prompt) -> Fact:
    """Returns a fact that is asked by one prompt alone."""
    question = prompt.text if prompt.is_question else ""
    wordings = () if prompt.is_question else (prompt.text,)
    return Fact(fact.id, question, fact.answers, wordings=wordings)
