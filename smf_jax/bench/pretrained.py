"""Cases of a pretrained model: prefill and greedy decoding."""

import dataclasses
from typing import NamedTuple

import numpy as np

from smf_jax import hf
from smf_jax.bench.config import BenchConfig
from smf_jax.bench.steps import generation_case
from smf_jax.bench.timing import Case
from smf_jax.config import MeshConfig
from smf_jax.model.transformer import Transformer
from smf_jax.sharding import make_layout


class Work(NamedTuple):
    """Prompts of random tokens, and how many tokens continue each."""

    name: str
    prompts: int
    prompt_len: int
    new_tokens: int
    amount: int  # tokens whose rate is told: of the prompts, or new ones

    def draw(self, vocab_size: int) -> np.ndarray:
        """Returns the prompts."""
        shape = (self.prompts, self.prompt_len)
        return np.random.default_rng(0).integers(0, vocab_size, shape, np.int32)


WORKS = (Work("prefill", 8, 256, 1, 8 * 256), Work("decoding", 32, 16, 32, 32 * 32))


def load(config: BenchConfig, products: str) -> Transformer:
    """Returns the pretrained model with products of a kind."""
    compute = dataclasses.replace(config.compute, products=products)
    layout = make_layout(MeshConfig(data=1), compute, None)
    return hf.import_model(config.source, layout=layout)


def case(model: Transformer, work: Work) -> Case:
    """Returns the case that answers the prompts greedily; no token ends an answer."""
    prompts = work.draw(model.config.vocab_size)
    return generation_case(model, prompts, work.new_tokens, work.amount)
