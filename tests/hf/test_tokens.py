"""BOS and EOS of an imported model."""

import json

import pytest
import tokenizers

from smf_jax import hf
from smf_jax.config import ConfigError
from smf_jax.data.tokenizer import encode_prompt


@pytest.fixture
def folder(tmp_path, tokenizer):
    tokenizer.rules.save(str(tmp_path / "tokenizer.json"))  # <pad>, <eot>, <unk>: 0-2
    return tmp_path


def write(folder, name, **content):
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("token", ["<unk>", {"content": "<unk>"}])
def test_eos_of_the_tokenizer_comes_before_that_of_the_model(folder, token):
    write(folder, "config.json", eos_token_id=0)
    write(folder, "tokenizer_config.json", eos_token=token)

    assert hf.read_tokenizer(folder).eos == 2


@pytest.mark.parametrize(("ids", "token"), [(2, None), ([2, 0], "")])
def test_eos_of_the_model_may_be_the_first_of_several(folder, ids, token):
    write(folder, "config.json", eos_token_id=ids)
    write(folder, "tokenizer_config.json", eos_token=token)

    assert hf.read_tokenizer(folder).eos == 2


@pytest.mark.parametrize("ids", [None, [], "x", True])
def test_a_missing_eos_is_refused(folder, ids):
    write(folder, "config.json", eos_token_id=ids)

    with pytest.raises(ConfigError, match="names the EOS token"):
        hf.read_tokenizer(folder)


def test_an_eos_outside_the_vocabulary_is_refused_by_name(folder):
    write(folder, "config.json", eos_token_id=99)
    with pytest.raises(ConfigError, match="EOS id 99"):
        hf.read_tokenizer(folder)
    write(folder, "tokenizer_config.json", eos_token="<end>")
    with pytest.raises(ConfigError, match="EOS '<end>'"):
        hf.read_tokenizer(folder)


def test_a_tokenizer_in_another_format_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"")

    with pytest.raises(ConfigError, match="save_pretrained"):
        hf.read_tokenizer(tmp_path)


def test_bos_is_what_the_tokenizer_puts_before_a_text(folder):
    rules = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    rules.post_processor = tokenizers.processors.TemplateProcessing(
        single="<eot> $A", special_tokens=[("<eot>", 1)]
    )
    rules.save(str(folder / "tokenizer.json"))
    write(folder, "config.json", eos_token_id=1)

    tokenizer = hf.read_tokenizer(folder)

    # BOS and EOS may be one token: it begins a prompt, and does not end it.
    assert encode_prompt(tokenizer, "a b") == rules.encode("a b").ids
    assert tokenizer.eos == 1
