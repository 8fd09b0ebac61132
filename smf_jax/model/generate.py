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
    end_token: int,
) -> Int[Array, "batch max_new_tokens"]:
    """Returns the most likely continuation, token by token.

    Prompts stand at the right end of their row, so that all of them are continued
    at the same place. After its end token a row holds only end tokens.

    Args:
      model: The model to ask.
      prompts: Token ids; what lies left of a prompt is ignored.
      is_prompt: Marks the tokens that belong to the prompt.
      max_new_tokens: Where to stop when no end token comes.
      end_token: The id that ends an answer.
    """
    batch, prompt_len = prompts.shape
    max_len = prompt_len + max_new_tokens
    new = jnp.arange(max_len) >= prompt_len
    is_token = jnp.pad(is_prompt, ((0, 0), (0, max_new_tokens))) | new[None]
    positions = jnp.maximum(jnp.cumsum(is_prompt, axis=1) - 1, 0)
    caches = model.empty_caches(batch, max_len)
    logits, caches = model.decode(prompts, positions, is_token, caches)
    answers = jnp.full((batch, max_new_tokens), end_token, prompts.dtype)

    def unfinished(carry):
        step, _, ended, *_ = carry
        return (step < max_new_tokens) & ~ended.all()

    def extend(carry):
        step, answers, ended, logits, caches = carry
        token = jnp.argmax(logits, -1).astype(answers.dtype)
        token = jnp.where(ended, end_token, token)
        answers = answers.at[:, step].set(token, mode="promise_in_bounds")
        position = positions[:, -1:] + 1 + step
        logits, caches = model.decode(token[:, None], position, is_token, caches)
        return step + 1, answers, ended | (token == end_token), logits, caches

    ended = jnp.zeros(batch, bool)
    carry = (jnp.zeros((), jnp.int32), answers, ended, logits, caches)
    return jax.lax.while_loop(unfinished, extend, carry)[1]
