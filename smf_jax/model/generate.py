"""Greedy decoding of a batch of prompts with a key-value cache."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from smf_jax.model.transformer import Transformer


def generate_greedily(
    model: Transformer,
    prompts: Int[Array, "batch prompt_len"],
    is_prompt: Bool[Array, "batch prompt_len"],
    max_new_tokens: int,
    eos_token: int,
) -> Int[Array, "batch max_new_tokens"]:
    """Returns the greedy continuation of each prompt, padded with `eos_token`.

    Prompts are padded on the left; `is_prompt` marks the tokens that are not padding.
    """
    batch, prompt_len = prompts.shape
    max_len = prompt_len + max_new_tokens
    new = jnp.arange(max_len) >= prompt_len
    is_token = jnp.pad(is_prompt, ((0, 0), (0, max_new_tokens))) | new[None]
    positions = jnp.maximum(jnp.cumsum(is_prompt, axis=1) - 1, 0)
    caches = model.empty_caches(batch, max_len)
    answers = jnp.full((batch, max_new_tokens), eos_token, prompts.dtype)

    def add_token(answers, index, ended, logits):
        token = jnp.argmax(logits, -1).astype(answers.dtype)
        token = jnp.where(ended, eos_token, token)
        return answers.at[:, index].set(token, mode="promise_in_bounds")

    def unfinished(carry):
        written, answers, _ = carry
        last = answers[:, written - 1]
        return (written < max_new_tokens) & (last != eos_token).any()

    def extend(carry):
        written, answers, caches = carry
        last = answers[:, written - 1]
        position = positions[:, -1:] + written
        logits, caches = model.decode(last[:, None], position, is_token, caches)
        answers = add_token(answers, written, last == eos_token, logits)
        return written + 1, answers, caches

    logits, caches = model.decode(prompts, positions, is_token, caches)
    answers = add_token(answers, 0, jnp.zeros(batch, bool), logits)
    carry = (jnp.ones((), jnp.int32), answers, caches)
    return jax.lax.while_loop(unfinished, extend, carry)[1]
