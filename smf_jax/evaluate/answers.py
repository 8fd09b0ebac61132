"""Scores of a model's generated answers to questions."""

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from smf_jax import multihost
from smf_jax.data.records import Fact
from smf_jax.data.tokenizer import (
    PAD,
    Tokenizer,
    decode,
    encode_completion,
    encode_prompt,
)
from smf_jax.model.generate import generate_greedily
from smf_jax.model.transformer import Transformer

QUESTIONS_PER_BATCH = 256


class Scores(NamedTuple):
    """Means over questions, each between 0 and 1."""

    exact_match: float
    f1: float


def normalise(answer: str) -> str:
    """Returns an answer in lower case without punctuation, articles and extra spaces.

    Source: the evaluation of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250).
    """
    answer = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer).split())


def is_exact(answer: str, accepted: Sequence[str]) -> bool:
    """Returns whether an answer equals any accepted one, both normalised."""
    return normalise(answer) in map(normalise, accepted)


def token_f1(answer: str, accepted: Sequence[str]) -> float:
    """Returns the F1 of the words shared with the best matching accepted answer."""
    return max(_f1(normalise(answer), normalise(right)) for right in accepted)


def _f1(answer: str, right: str) -> float:
    answer, right = answer.split(), right.split()
    if not answer or not right:
        return float(answer == right)
    shared = (Counter(answer) & Counter(right)).total()
    return 2 * shared / (len(answer) + len(right))


def score(answers: Sequence[str], facts: Sequence[Fact]) -> Scores:
    """Returns the mean scores of one answer per fact."""
    pairs = [(a, fact.answers) for a, fact in zip(answers, facts, strict=True)]
    return Scores(
        float(np.mean([is_exact(*pair) for pair in pairs])),
        float(np.mean([token_f1(*pair) for pair in pairs])),
    )


def longest_answer(tokenizer: Tokenizer, facts: Sequence[Fact]) -> int:
    """Returns the most tokens that a fact's first answer has, with EOS."""
    return max(len(encode_completion(tokenizer, fact.answers[0])) for fact in facts)


def answer(
    model: Transformer,
    tokenizer: Tokenizer,
    questions: Sequence[str],
    max_new_tokens: int,
) -> list[str]:
    """Returns the model's greedy answer to each question."""
    graph, params = nnx.split(model)
    prompts = [encode_prompt(tokenizer, question) for question in questions]
    # Batches of one size and of prompts of similar length. The longest come first, so
    # that a last batch that is not full has short ones.
    rows = min(QUESTIONS_PER_BATCH, len(prompts))
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    answers = [""] * len(prompts)
    for start in range(0, len(prompts), rows):
        multihost.busy(f"answering questions from {start} on")
        indices = order[start : start + rows]
        batch = model.layout.shard_batch(_left_pad([prompts[i] for i in indices], rows))
        ids = _generate(graph, params, *batch, max_new_tokens, tokenizer.eos)
        for index, row in zip(indices, np.asarray(ids), strict=False):
            answers[index] = decode(tokenizer, row)
    return answers


def _left_pad(prompts: list[list[int]], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `rows` rows of left-padded prompts, and which of their tokens are prompt.

    Each width compiles a program, so there are few: multiples of 4, above 16 of 8,
    above 32 of 16, and so on.
    """
    longest = max(len(prompt) for prompt in prompts)
    unit = 2 ** max(2, (longest - 1).bit_length() - 2)
    width = -(-longest // unit) * unit
    tokens = np.full((rows, width), PAD, np.int32)
    lengths = np.ones(rows, np.int32)  # 1 for rows without a question
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        lengths[row] = len(prompt)
    return tokens, np.arange(width) >= width - lengths[:, None]


@functools.partial(jax.jit, static_argnames=("graph", "max_new_tokens", "eos"))
def _generate(graph, params, tokens, is_prompt, max_new_tokens, eos):
    model = nnx.merge(graph, params)
    ids = generate_greedily(model, tokens, is_prompt, max_new_tokens, eos)
    return model.layout.constrain(ids)  # replicated, so that every host can read them
