"""Asking a model questions: always by generating, never by showing it the answer."""

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree

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
from smf_jax.sharding import ONE_DEVICE, MeshLayout

QUESTIONS_PER_BATCH = 256


class Scores(NamedTuple):
    """Means over questions, each between 0 and 1."""

    exact_match: float
    f1: float


def normalise(answer: str) -> str:
    """Returns the answer in lower case, without punctuation, articles, extra spaces.

    Source: the evaluation of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250).
    """
    answer = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer).split())


def is_exact(answer: str, accepted: Sequence[str]) -> bool:
    """Returns whether the answer equals any accepted one, both normalised."""
    return normalise(answer) in {normalise(right) for right in accepted}


def token_f1(answer: str, accepted: Sequence[str]) -> float:
    """Returns the best F1 of shared words over the accepted answers."""
    return max(_f1(normalise(answer), normalise(right)) for right in accepted)


def _f1(answer: str, right: str) -> float:
    answer, right = answer.split(), right.split()
    if not answer or not right:
        return float(answer == right)
    shared = (Counter(answer) & Counter(right)).total()
    return 2 * shared / (len(answer) + len(right))


def score(answers: Sequence[str], facts: Sequence[Fact]) -> Scores:
    """Returns how well the answers match the facts they were given to."""
    pairs = [(a, fact.answers) for a, fact in zip(answers, facts, strict=True)]
    return Scores(
        float(np.mean([is_exact(*pair) for pair in pairs])),
        float(np.mean([token_f1(*pair) for pair in pairs])),
    )


def longest_answer(tokenizer: Tokenizer, facts: Sequence[Fact]) -> int:
    """Returns how many tokens the longest first answer has, with its end token."""
    return max(len(encode_completion(tokenizer, fact.answers[0])) for fact in facts)


def answer(
    graph: nnx.GraphDef,
    params: tuple[PyTree, ...],
    tokenizer: Tokenizer,
    questions: Sequence[str],
    max_new_tokens: int,
    layout: MeshLayout = ONE_DEVICE,
) -> list[str]:
    """Returns the model's greedy answer to each question.

    Args:
      graph: The model's structure.
      params: Its parameters, in the parts that `graph` was split into.
      tokenizer: The model's own.
      questions: Prompts.
      max_new_tokens: Where an answer ends that does not end itself.
      layout: Where the parameters are.
    """
    prompts = [encode_prompt(tokenizer, question) for question in questions]
    # Every batch has as many rows, and questions of like length. The longest come
    # first: what is left for a last batch, which may not be full, are short ones.
    rows = min(QUESTIONS_PER_BATCH, len(prompts))
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    answers = [""] * len(prompts)
    for start in range(0, len(prompts), rows):
        multihost.busy(f"questions, from {start} on by length")
        numbers = order[start : start + rows]
        batch = [prompts[number] for number in numbers]
        given = layout.shard_batch(_padded(batch, rows))
        ids = _generate(graph, params, *given, max_new_tokens, tokenizer.eos)
        for number, row in zip(numbers, np.asarray(ids), strict=False):
            answers[number] = decode(tokenizer, row)
    return answers


def _padded(prompts: list[list[int]], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns prompts at the right end of their rows, and where they are.

    Rows are of one of few lengths, for each of which a program is compiled: multiples
    of 4, above 16 of 8, above 32 of 16, and so on.
    """
    longest = max(len(prompt) for prompt in prompts)
    unit = 2 ** max(2, (longest - 1).bit_length() - 2)
    length = -(-longest // unit) * unit
    tokens = np.full((rows, length), PAD, np.int32)
    lengths = np.ones(rows, np.int32)  # 1 also of rows without a question
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = prompt
        lengths[row] = len(prompt)
    return tokens, np.arange(length) >= length - lengths[:, None]


@functools.partial(jax.jit, static_argnames=("graph", "max_new_tokens", "end"))
def _generate(graph, params, tokens, is_prompt, max_new_tokens, end):
    model = nnx.merge(graph, *params)
    ids = generate_greedily(model, tokens, is_prompt, max_new_tokens, end)
    return model.layout.constrain(ids)  # whole, as the host is to read them
