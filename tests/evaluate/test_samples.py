"""Texts that a model writes by itself."""

import numpy as np
import pytest

from smf_jax.data.tokenizer import train_tokenizer
from smf_jax.evaluate import samples
from smf_jax.evaluate.samples import sample_texts
from tests.tiny import make_model, model_config

WORDS = "a b c d e f g h".split()


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS)], "word", 11)


@pytest.fixture(scope="module")
def model(tokenizer):
    assert tokenizer.num_tokens == 11
    return make_model(model_config(memory=None))


@pytest.fixture
def written(monkeypatch, tokenizer):
    """Returns a function that makes every model write the given ids."""

    def write(*rows: list[list[int]]):
        asked = []

        def continuations(graph, params, prompts, is_prompt, tokens, is_end, draws):
            asked.append(np.asarray(prompts).ravel().tolist())
            return np.array(rows[min(len(asked), len(rows)) - 1])

        monkeypatch.setattr(samples, "continuations", continuations)
        return asked

    return write


def test_a_model_writes_texts_of_its_own_words(model, tokenizer):
    texts = sample_texts(model, tokenizer, 24, 16, seed=0)

    assert len(texts) > 0
    for text in texts:
        assert set(text.split()) <= {*WORDS, "<unk>", "<pad>"}
        assert 4 <= len(text.split()) <= 17


def test_texts_depend_on_the_seed_alone(model, tokenizer):
    first, again, other = (
        sample_texts(model, tokenizer, 24, 16, seed) for seed in (0, 0, 1)
    )

    assert first == again
    assert first != other


def test_a_text_ends_before_its_end_and_short_ones_are_left_out(
    model, tokenizer, written
):
    a, b, c, d = (tokenizer.rules.token_to_id(word) for word in "abcd")
    end = tokenizer.eos
    asked = written([[a, b, c, d, end, a], [a, b, end, a, a, a], [d, c, b, a, a, a]])

    assert sample_texts(model, tokenizer, 3, 6, seed=0) == ["a b c d", "d c b a a a"]
    assert asked == [[end] * 3]


def test_a_model_that_ends_at_once_starts_from_words_drawn_at_random(
    model, tokenizer, written
):
    a, b, end = *(tokenizer.rules.token_to_id(word) for word in "ab"), tokenizer.eos
    asked = written([[end] * 4] * 4, [[a, b, a, b]] * 4)

    texts = sample_texts(model, tokenizer, 4, 4, seed=0)

    assert len(texts) == 4
    assert all(text.endswith("a b a b") for text in texts)
    ids = {tokenizer.rules.token_to_id(word) for word in WORDS}
    assert set(asked[1]) <= ids
