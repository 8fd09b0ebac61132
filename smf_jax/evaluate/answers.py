"""A model's answers to prompts, batched by length."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from smf_jax import multihost
from smf_jax.config import BY_DEFAULT, AskConfig, require
from smf_jax.data.prompts import (
    PLAIN,
    Example,
    Prompt,
    PromptFormat,
    encode_answered,
    encode_asked,
    ends_of,
)
from smf_jax.data.tokenizer import PAD, Tokenizer, decode
from smf_jax.model.build import inference_parts
from smf_jax.model.generate import Sampling, generate
from smf_jax.model.transformer import Transformer

PROMPTS_PER_BATCH = 256


def longest_answer(
    tokenizer: Tokenizer, prompts: Sequence[Prompt], form: PromptFormat = PLAIN
) -> int:
    """Returns the most tokens that an accepted answer has, with its end."""
    form = form._replace(shots=())
    kinds = {(each, p.is_question) for p in prompts for each in p.answers}
    examples = (Example("?", answer, "", is_asked) for answer, is_asked in kinds)
    return max(len(encode_answered(tokenizer, form, each)[1]) for each in examples)


def answer(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    form: PromptFormat = PLAIN,
    sampling: AskConfig = BY_DEFAULT,
    context: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Returns the model's answer to each prompt, by default by greedy decoding.

    Of `sampling` only the temperature, `top_p` and the seed count. `context` is the
    longest text that the model supports, in tokens, if it is known; `progress` is told
    how many prompts are answered.

    Raises:
      ConfigError: A prompt and its answer may be longer than the context.
    """
    graph, params = inference_parts(model)
    ids = [encode_asked(tokenizer, form, p.text, p.is_question) for p in prompts]
    _require_context(prompts, ids, max_new_tokens, context)
    ends = ends_of(tokenizer, form)
    stops = _stops(tokenizer, ends, form.stop, model.config.vocab_size)
    is_end = jnp.asarray(stops)
    keys = jax.random.split(jax.random.key(sampling.seed), len(ids))
    # Batches of one size and of prompts of similar length. The longest come first, so
    # that a last batch that is not full has short ones.
    rows = min(PROMPTS_PER_BATCH, len(ids))
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    answers = [""] * len(ids)
    for start in range(0, len(ids), rows):
        multihost.busy(f"answering prompts from {start} on")
        indices = order[start : start + rows]
        batch = model.layout.shard_batch(_left_pad([ids[i] for i in indices], rows))
        draws = None
        if sampling.temperature > 0:
            padded = np.resize(indices, rows)
            draws = Sampling(keys[padded], sampling.temperature, sampling.top_p)
        tokens = continuations(graph, params, *batch, max_new_tokens, is_end, draws)
        for index, row in zip(indices, np.asarray(tokens), strict=False):
            # What follows the first stop repeats it.
            row = row[: np.append(stops[row], True).argmax() + 1]
            answers[index] = decode(tokenizer, row, ends, form.stop)
        progress(start + len(indices))
    return answers


def _require_context(
    prompts: Sequence[Prompt],
    ids: Sequence[Sequence[int]],
    max_new_tokens: int,
    context: int | None,
) -> None:
    if context is None:
        return
    longest = max(range(len(ids)), key=lambda index: len(ids[index]))
    length = len(ids[longest])
    require(
        length + max_new_tokens <= context,
        f"a prompt of {length:,} tokens and an answer of {max_new_tokens:,} exceed the "
        f"context of {context:,} tokens of the model (max_position_embeddings): "
        f"{prompts[longest].text[:60]!r}",
    )


def _stops(
    tokenizer: Tokenizer, ends: Sequence[int], stop: Sequence[str], vocab_size: int
) -> np.ndarray:
    """Returns which tokens end an answer, or complete a stop string by themselves."""
    stops = np.zeros(vocab_size, bool)
    stops[[token for token in ends if token < vocab_size]] = True
    if stop:
        for token in range(min(vocab_size, tokenizer.num_tokens)):
            text = tokenizer.rules.decode([token])
            stops[token] |= any(each in text for each in stop)
    return stops


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


@functools.partial(jax.jit, static_argnames=("graph", "max_new_tokens"))
def continuations(graph, params, tokens, is_prompt, max_new_tokens, is_end, sampling):
    """Returns `generate` of a model in parts, compiled."""
    model = nnx.merge(graph, params)
    ids = generate(model, tokens, is_prompt, max_new_tokens, is_end, sampling)
    return model.layout.constrain(ids)  # replicated, so that every host can read them
