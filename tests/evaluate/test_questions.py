import jax
import numpy as np
from flax import nnx

from smf_jax.config import LoraConfig
from smf_jax.data.records import Fact
from smf_jax.data.tokenizer import train_tokenizer
from smf_jax.evaluate.answers import answer
from smf_jax.evaluate.questions import Questions, evaluate_model
from smf_jax.model.lora import LoRAParam, add_lora
from smf_jax.sharding import ONE_DEVICE
from tests import tiny

WORDS = ["red", "old", "fox", "owl", "hen", "ant"]


def test_a_lora_model_is_evaluated_merged_and_stays_unmerged():
    tokenizer = train_tokenizer([" ".join(WORDS)], "word", vocab_size=12)
    facts = [Fact(word, f"{word} {word}", ("red fox",)) for word in WORDS]
    questions = Questions(facts, facts, [], [], "hash")
    model = tiny.make_model(tiny.model_config(vocab_size=12))
    without = nnx.split(model)
    add_lora(model, LoraConfig(rank=2, alpha=8.0), rngs=nnx.Rngs(0))
    for _, factor in nnx.iter_graph(model):
        if isinstance(factor, LoRAParam):
            factor[...] = jax.random.normal(jax.random.key(factor.size), factor.shape)
    graph, added, rest = nnx.split(model, LoRAParam, ...)
    prompts = [fact.question for fact in facts]

    points = [
        evaluate_model(graph, tokenizer, questions, [], ONE_DEVICE, 0, (added, rest))
        for _ in range(2)
    ]

    apart = answer(graph, (added, rest), tokenizer, prompts, 3)
    assert [point.answers["taught"] for point in points] == [apart, apart]
    assert apart != answer(without[0], without[1:], tokenizer, prompts, 3)
    np.testing.assert_array_equal(
        nnx.merge(graph, added, rest).blocks[0].attention.query.base.kernel[...],
        tiny.make_model(tiny.model_config(vocab_size=12))
        .blocks[0]
        .attention.query.kernel[...],
    )
