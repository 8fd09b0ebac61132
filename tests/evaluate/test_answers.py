import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from smf_jax.config import AskConfig, ConfigError
from smf_jax.data.prompts import PLAIN, Prompt, PromptFormat
from smf_jax.data.tokenizer import Tokenizer, encode_prompt, train_tokenizer
from smf_jax.evaluate import answers
from smf_jax.evaluate.answers import answer, longest_answer
from tests import tiny

WORDS = ["red", "old", "fox", "owl"]
SEED = 5  # of a model that does not repeat one word


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS)], "word", vocab_size=10)


@pytest.fixture(scope="module")
def model():
    return tiny.make_model(tiny.model_config(vocab_size=10), SEED)


def asked(*texts):
    return [Prompt(str(n), text, ("red",)) for n, text in enumerate(texts)]


def test_the_longest_of_all_accepted_answers_is_counted_with_its_end(tokenizer):
    prompts = [Prompt("1", "q", ("red fox", "red old fox owl"))]
    prompts += [Prompt("2", "q", ("owl",))]

    assert longest_answer(tokenizer, prompts) == 5
    assert longest_answer(tokenizer, prompts[1:]) == 2


def test_a_question_has_the_same_answer_in_any_batch(monkeypatch, tokenizer, model):
    monkeypatch.setattr(answers, "PROMPTS_PER_BATCH", 4)
    lengths = [35, 3, 12, 1, 9, 11, 33, 2, 4, 10]
    prompts = asked(
        *(" ".join(WORDS[(n * n + index) % 4] for index in range(n)) for n in lengths)
    )
    want = [answer(model, tokenizer, [prompt], 3)[0] for prompt in prompts]
    answers.continuations.clear_cache()
    told = []

    got = answer(model, tokenizer, prompts, 3, progress=told.append)

    assert got == want
    assert len(set(got)) > 2
    assert answers.continuations._cache_size() == 3  # four at a time, by length
    assert told == [4, 8, 10]


def test_an_answer_ends_before_any_end_and_any_stop_string(tokenizer, model):
    (endless,) = answer(model, tokenizer, asked("red old"), 6)
    words = endless.split()
    second = next(w for w in words if w != words[0])
    ended = tokenizer._replace(other_ends=(tokenizer.rules.token_to_id(second),))
    want = endless[: endless.index(second)].strip()

    assert answer(model, ended, asked("red old"), 6) == [want]
    stopping = PromptFormat(stop=(second,))
    assert answer(model, tokenizer, asked("red old"), 6, stopping) == [want]
    across = PromptFormat(stop=(f"{words[0]} {words[1]}",))
    assert answer(model, tokenizer, asked("red old"), 6, across) == [""]


def test_a_token_that_holds_a_stop_string_ends_the_decoding():
    pieces = train_tokenizer(["red\n\n old .\n"] * 3, "bpe", vocab_size=280)

    stops = answers._stops(pieces, (1,), ("\n",), 290)

    held = {n for n in range(pieces.num_tokens) if "\n" in pieces.rules.decode([n])}
    assert set(np.flatnonzero(stops)) == {1, *held}
    assert len(held) > 1


def test_nothing_follows_a_token_that_completes_a_stop_string(tokenizer, model):
    (endless,) = answer(model, tokenizer, asked("red old"), 6)
    first, second, *_ = dict.fromkeys(endless.split())
    # A byte after half a character, which the decoded text does not show.
    content = (
        tokenizer.rules.to_str().replace(first, "<0xE6>").replace(second, "<0x0A>")
    )
    rules = tokenizers.Tokenizer.from_str(content)
    bytes_of = tokenizers.decoders.ByteFallback()
    rules.decoder = tokenizers.decoders.Sequence([bytes_of, tokenizers.decoders.Fuse()])
    ids = encode_prompt(tokenizer, "red old")
    prompt = Prompt("1", " ".join(map(rules.id_to_token, ids)), ("red",))

    got = answer(model, Tokenizer(rules), [prompt], 6, PromptFormat(stop=("\n",)))

    assert got == ["\ufffd" * (endless.split().index(second) + 1)]


def test_a_prompt_beyond_the_context_is_refused_by_its_text(tokenizer, model):
    prompts = asked("red", "old fox owl red")

    assert len(answer(model, tokenizer, prompts, 3, context=7)) == 2
    with pytest.raises(ConfigError, match=r"4 tokens .* of 3 .*context of 6 .*old fox"):
        answer(model, tokenizer, prompts, 3, context=6)


def test_samples_differ_by_seed_and_prompt_and_are_repeated_by_both(tokenizer, model):
    warm = AskConfig(temperature=5.0)
    prompts = asked(*["red old"] * 6)

    first = answer(model, tokenizer, prompts, 4, PLAIN, warm)

    assert len(set(first)) > 2
    assert answer(model, tokenizer, prompts, 4, PLAIN, warm) == first
    other = AskConfig(temperature=5.0, seed=1)
    assert answer(model, tokenizer, prompts, 4, PLAIN, other) != first
    greedy = answer(model, tokenizer, prompts, 4)
    cold = AskConfig(temperature=5.0, top_p=1e-6)
    assert answer(model, tokenizer, prompts, 4, PLAIN, cold) == greedy


def test_answers_of_a_sampled_batch_do_not_depend_on_its_size(
    monkeypatch, tokenizer, model
):
    warm = AskConfig(temperature=2.0)
    prompts = asked(*["red old", "fox", "owl red fox", "old", "red"])
    want = answer(model, tokenizer, prompts, 4, PLAIN, warm)
    monkeypatch.setattr(answers, "PROMPTS_PER_BATCH", 2)

    assert answer(model, tokenizer, prompts, 4, PLAIN, warm) == want
    assert jnp.isfinite(model.embedding[...]).all()
