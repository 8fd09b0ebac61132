import jax
from flax import nnx

from smf_jax.config import LoraConfig
from smf_jax.data.records import Fact
from smf_jax.data.tokenizer import train_tokenizer
from smf_jax.evaluate.answers import answer
from smf_jax.evaluate.questions import Questions, evaluate_model
from smf_jax.model.lora import LoRAParam, add_lora
from tests import tiny

WORDS = ["red", "old", "fox", "owl", "hen", "ant"]


def test_a_lora_model_is_evaluated_as_its_factors_apart_would_be():
    tokenizer = train_tokenizer([" ".join(WORDS)], "word", vocab_size=12)
    facts = [Fact(word, f"{word} {word}", ("red fox",)) for word in WORDS]
    questions = Questions(facts, facts, [], [], "hash")
    model = tiny.make_model(tiny.model_config(vocab_size=12))
    without = answer(model, tokenizer, [fact.question for fact in facts], 3)
    add_lora(model, LoraConfig(rank=2, alpha=8.0), rngs=nnx.Rngs(0))
    for _, factor in nnx.iter_graph(model):
        if isinstance(factor, LoRAParam):
            factor[...] = jax.random.normal(jax.random.key(factor.size), factor.shape)
    apart = answer(model, tokenizer, [fact.question for fact in facts], 3)

    point = evaluate_model(model, tokenizer, questions, [], 0)

    assert point.answers["taught"] == apart != without
    assert not any(isinstance(leaf, LoRAParam) for _, leaf in nnx.iter_graph(model))
