"""Decoding of a batch of prompts with a key-value cache, greedily or by sampling."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from smf_jax.model.transformer import Transformer


class Sampling(NamedTuple):
    """How tokens are sampled."""

    keys: Key[Array, " batch"]  # one a prompt: no answer depends on its batch
    temperature: Float[Array, ""]  # divides the logits
    # share of probability that is sampled from; None: all of it
    top_p: Float[Array, ""] | None


def generate(
    model: Transformer,
    prompts: Int[Array, "batch prompt_len"],
    is_prompt: Bool[Array, "batch prompt_len"],
    max_new_tokens: int,
    is_end: Bool[Array, " vocab"],
    sampling: Sampling | None = None,
) -> Int[Array, "batch max_new_tokens"]:
    """Returns the continuation of each prompt, by default the greedy one.

    Prompts are padded on the left; `is_prompt` marks the tokens that are not padding.
    `is_end` marks the tokens that end a continuation, the last of which is repeated.
    """
    batch, prompt_len = prompts.shape
    max_len = prompt_len + max_new_tokens
    new = jnp.arange(max_len) >= prompt_len
    is_token = jnp.pad(is_prompt, ((0, 0), (0, max_new_tokens))) | new[None]
    positions = jnp.maximum(jnp.cumsum(is_prompt, axis=1) - 1, 0)
    caches = model.empty_caches(batch, max_len)
    answers = jnp.zeros((batch, max_new_tokens), prompts.dtype)

    def add_token(answers, index, last, ended, logits):
        token = _choose(logits, index, sampling).astype(answers.dtype)
        token = jnp.where(ended, last, token)
        return answers.at[:, index].set(token, mode="promise_in_bounds")

    def has_ended(last):
        return is_end.at[last].get(mode="promise_in_bounds")

    def unfinished(carry):
        written, answers, _ = carry
        ended = has_ended(answers[:, written - 1])
        return (written < max_new_tokens) & ~ended.all()

    def extend(carry):
        written, answers, caches = carry
        last = answers[:, written - 1]
        position = positions[:, -1:] + written
        logits, caches = model.decode(last[:, None], position, is_token, caches)
        answers = add_token(answers, written, last, has_ended(last), logits)
        return written + 1, answers, caches

    logits, caches = model.decode(prompts, positions, is_token, caches)
    answers = add_token(answers, 0, prompts[:, -1], jnp.zeros(batch, bool), logits)
    carry = (jnp.ones((), jnp.int32), answers, caches)
    written, answers, _ = jax.lax.while_loop(unfinished, extend, carry)
    # Once all have ended, the rest is still to be filled.
    last = jnp.take_along_axis(answers, jnp.full((batch, 1), written - 1), axis=1)
    return jnp.where(jnp.arange(max_new_tokens) < written, answers, last)


def _choose(
    logits: Float[Array, "batch vocab"],
    index: Int[Array, ""] | int,
    sampling: Sampling | None,
) -> Int[Array, " batch"]:
    if sampling is None:
        return jnp.argmax(logits, -1)
    logits = logits / sampling.temperature
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    keys = jax.vmap(jax.random.fold_in, (0, None))(sampling.keys, index)
    return jax.vmap(jax.random.categorical)(keys, logits)


def keep_top_p(
    logits: Float[Array, "batch vocab"], top_p: Float[Array, ""]
) -> Float[Array, "batch vocab"]:
    """Returns logits without those of all but the most probable tokens.

    The fewest tokens remain whose probabilities sum to at least `top_p`.

    Source: Holtzman et al. 2020, arXiv:1904.09751.
    """
    ordered = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    smallest = jnp.where(before < top_p, ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits >= smallest, logits, -jnp.inf)
