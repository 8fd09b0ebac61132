import io
import json

import jax
from flax import nnx
from rich.console import Console

from smf_jax.config import BY_DEFAULT, DataConfig, LoraConfig, WorldConfig
from smf_jax.data.corpus import load_corpus
from smf_jax.data.prompts import Prompt
from smf_jax.data.tokenizer import train_tokenizer
from smf_jax.evaluate.answers import answer
from smf_jax.evaluate.asking import make_asking
from smf_jax.evaluate.questions import (
    Evaluation,
    Questions,
    evaluate_model,
    load_questions,
)
from smf_jax.model.lora import LoRAParam, add_lora
from tests import tiny

WORDS = ["red", "old", "fox", "owl", "hen", "ant"]


def test_a_lora_model_is_evaluated_as_its_factors_apart_would_be():
    tokenizer = train_tokenizer([" ".join(WORDS)], "word", vocab_size=12)
    prompts = [Prompt(word, f"{word} {word}", ("red fox",)) for word in WORDS]
    questions = Questions([], prompts, [], [], "hash")
    model = tiny.make_model(tiny.model_config(vocab_size=12))
    without = answer(model, tokenizer, prompts, 3)
    add_lora(model, LoraConfig(rank=2, alpha=8.0), rngs=nnx.Rngs(0))
    for _, factor in nnx.iter_graph(model):
        if isinstance(factor, LoRAParam):
            factor[...] = jax.random.normal(jax.random.key(factor.size), factor.shape)
    apart = answer(model, tokenizer, prompts, 3)

    asking, console = make_asking(BY_DEFAULT, tokenizer), Console(quiet=True)
    point = evaluate_model(model, tokenizer, questions, [], 0, asking, console)

    assert point.answers["taught"] == apart != without
    assert Evaluation.from_json(json.loads(json.dumps(point.to_json()))) is not None
    assert not any(isinstance(leaf, LoRAParam) for _, leaf in nnx.iter_graph(model))


def test_new_facts_that_are_known_already_are_counted(tmp_path):
    corpus = load_corpus(DataConfig(world=WorldConfig(known_people=2, new_people=1)))
    rows = [{"question": f.question, "answers": f.answers} for f in corpus.known]
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    console = Console(file=io.StringIO(), width=200)

    load_questions(corpus, str(path), None, "questions", console)

    assert "8 of the 8 new facts are known facts, too" in console.file.getvalue()
