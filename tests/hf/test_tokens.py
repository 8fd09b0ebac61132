"""Which token ends a text, and what the rules of a model say."""

import json

import pytest
import tokenizers

from smf_jax import hf
from smf_jax.config import ConfigError
from smf_jax.data.tokenizer import encode_prompt, train_tokenizer

WORDS = ["<pad>", "<eot>", "<unk>"]  # ids 0, 1, 2 of a tokenizer of ours


@pytest.fixture
def folder(tmp_path):
    rules = train_tokenizer(["a b c"], "word", 9).rules
    rules.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write(folder, name, **content):
    (folder / name).write_text(json.dumps(content))


def test_the_end_is_that_of_the_tokenizer_before_that_of_the_model(folder):
    write(folder, "config.json", eos_token_id=0)
    write(folder, "tokenizer_config.json", eos_token="<unk>")

    assert hf.read_tokenizer(folder).eos == 2


def test_a_token_may_be_described_at_length(folder):
    write(folder, "tokenizer_config.json", eos_token={"content": "<eot>"})

    assert hf.read_tokenizer(folder).eos == 1


@pytest.mark.parametrize("nothing", [None, ""])
@pytest.mark.parametrize("end", [2, [2, 0]])
def test_the_end_may_be_that_of_the_model_the_first_of_several(folder, end, nothing):
    write(folder, "config.json", eos_token_id=end)
    write(folder, "tokenizer_config.json", eos_token=nothing)

    assert hf.read_tokenizer(folder).eos == 2


@pytest.mark.parametrize("end", [None, [], "x", 99, True])
def test_an_end_that_nothing_names_is_missed(folder, end):
    write(folder, "config.json", eos_token_id=end)

    with pytest.raises(ConfigError):
        hf.read_tokenizer(folder)


def test_an_end_that_is_no_token_is_refused_by_name(folder):
    write(folder, "tokenizer_config.json", eos_token="<end>")

    with pytest.raises(ConfigError, match="<end>"):
        hf.read_tokenizer(folder)


def test_a_tokenizer_of_another_kind_of_file_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"")

    with pytest.raises(ConfigError, match="save_pretrained"):
        hf.read_tokenizer(tmp_path)


def test_marks_in_a_text_are_those_of_its_rules(folder):
    rules = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    rules.post_processor = tokenizers.processors.TemplateProcessing(
        single="<eot> $A", special_tokens=[("<eot>", 1)]
    )
    rules.save(str(folder / "tokenizer.json"))
    write(folder, "config.json", eos_token_id=1)

    tokenizer = hf.read_tokenizer(folder)

    # Start and end may be one token: it begins a prompt, and ends nothing there.
    assert encode_prompt(tokenizer, "a b") == rules.encode("a b").ids
    assert tokenizer.eos == 1
