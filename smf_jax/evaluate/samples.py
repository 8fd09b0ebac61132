"""Texts that a model writes by itself."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from smf_jax import multihost
from smf_jax.data.tokenizer import Tokenizer, control_tokens
from smf_jax.evaluate.answers import continuations
from smf_jax.model.build import inference_parts
from smf_jax.model.generate import Sampling
from smf_jax.model.transformer import Transformer

ROWS_PER_BATCH = 128
LEAST_WORDS = 4  # of a text: shorter ones are blanks, or an end at once


def sample_texts(
    model: Transformer,
    tokenizer: Tokenizer,
    rows: int,
    tokens: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Returns texts sampled at temperature 1, of up to `tokens` tokens; few or no words
    are left out.

    They start as the model's texts do, after BOS, or else after the end of another
    text. A model that writes nothing there, for most rows, starts from a token drawn at
    random.
    """
    rng = np.random.default_rng(seed)
    batches = math.ceil(rows / ROWS_PER_BATCH)
    sizes = [len(part) for part in np.array_split(np.arange(rows), batches)]
    start = tokenizer.bos or (tokenizer.eos,)
    texts, starts_anywhere = [], False
    for number, size in enumerate(sizes):
        prompts = np.tile(np.array(start, np.int32), (size, 1))
        wrote = _write(model, tokenizer, prompts, tokens, (seed, number))
        if number == 0 and len(wrote) < size / 2:
            starts_anywhere = True
        if starts_anywhere:
            prompts = rng.choice(_words(model, tokenizer), (size, 1)).astype(np.int32)
            wrote = _write(model, tokenizer, prompts, tokens, (seed, number))
        texts += wrote
        progress(sum(sizes[: number + 1]))
    return texts


def _words(model: Transformer, tokenizer: Tokenizer) -> np.ndarray:
    """Returns the tokens that are text."""
    count = min(model.config.vocab_size, tokenizer.num_tokens)
    controls = {*control_tokens(tokenizer).values(), *tokenizer.bos, *tokenizer.ends}
    return np.array([token for token in range(count) if token not in controls])


def _write(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: np.ndarray,
    tokens: int,
    seed: tuple[int, int],
) -> list[str]:
    """Returns what a model writes after each prompt, without rows of too few words."""
    graph, params = inference_parts(model)
    rows = len(prompts)
    is_end = np.zeros(model.config.vocab_size, bool)
    is_end[[token for token in tokenizer.ends if token < len(is_end)]] = True
    key = jax.random.fold_in(jax.random.key(seed[0]), seed[1])
    draws = Sampling(jax.random.split(key, rows), jnp.float32(1), None)
    multihost.busy("sampling texts")
    batch = model.layout.shard_batch((prompts, np.ones(prompts.shape, bool)))
    is_end = jnp.asarray(is_end)
    ids = continuations(graph, params, *batch, tokens, is_end, draws)
    texts = []
    for prompt, row in zip(prompts, np.asarray(ids), strict=False):
        ends = np.isin(row, tokenizer.ends)
        row = row[: ends.argmax()] if ends.any() else row
        # Without control tokens, which the first of a prompt may be.
        text = tokenizer.rules.decode([*map(int, prompt), *map(int, row)]).strip()
        if len(text.split()) >= LEAST_WORDS:
            texts.append(text)
    return texts
