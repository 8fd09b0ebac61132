"""BOS, the ends of an answer, and the chat template of an imported model."""

import json

import pytest
import tokenizers

from smf_jax import hf
from smf_jax.config import ConfigError
from smf_jax.data.chat_template import ChatTemplate
from smf_jax.data.tokenizer import (
    encode_prompt,
    encode_with_controls,
    tokenizer_hash,
)
from tests.data.test_prompts import TEMPLATE

PAD, EOT, UNK = "<pad>", "<eot>", "<unk>"  # ids 0, 1, 2


@pytest.fixture
def folder(tmp_path, tokenizer):
    tokenizer.rules.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "config.json", eos_token_id=1)
    return tmp_path


def write(folder, name, **content):
    (folder / name).write_text(json.dumps(content))


def read(folder, **settings):
    return hf.read_tokenizer(folder, **settings)[0]


def note_of(folder, **settings) -> str:
    """Returns the one note on a tokenizer."""
    (note,) = hf.read_tokenizer(folder, **settings)[1]
    return note


@pytest.mark.parametrize("token", [UNK, {"content": UNK}])
def test_eos_of_the_tokenizer_comes_before_that_of_the_model(folder, token):
    write(folder, "config.json", eos_token_id=0)
    write(folder, "tokenizer_config.json", eos_token=token)

    assert read(folder).ends == (2, 0)


@pytest.mark.parametrize(("ids", "token"), [(2, None), ([2, 0], "")])
def test_eos_of_the_model_may_be_the_first_of_several(folder, ids, token):
    write(folder, "config.json", eos_token_id=ids)
    write(folder, "tokenizer_config.json", eos_token=token)

    assert read(folder).eos == 2


@pytest.mark.parametrize("ids", [2, [2, 0]])
def test_all_files_name_ends_and_that_of_generation_is_trained(folder, ids):
    write(folder, "generation_config.json", eos_token_id=ids)
    write(folder, "tokenizer_config.json", eos_token=EOT)

    tokenizer = read(folder)

    assert tokenizer.eos == 2
    assert set(tokenizer.ends) == {1, *([ids] if ids == 2 else ids)}
    note = note_of(folder)
    assert "<unk> (generation_config.json)" in note
    assert "<eot> (tokenizer_config.json, config.json)" in note
    assert note.endswith("teaching trains <unk>")


def test_the_end_of_a_chat_turn_is_trained_if_it_is_an_end(folder):
    chat = {"chat_template": TEMPLATE.source, "eos_token": EOT}
    write(folder, "tokenizer_config.json", bos_token=PAD, **chat)
    write(folder, "config.json", eos_token_id=[1, 2])

    assert read(folder).ends == (2, 1)
    assert "teaching trains <unk>, as the chat template ends" in note_of(folder)
    write(folder, "config.json", eos_token_id=1)
    assert read(folder).ends == (1,)  # a base model with a template


def test_one_end_by_several_names_needs_no_note(folder):
    write(folder, "tokenizer_config.json", eos_token=EOT, add_bos_token=False)

    assert hf.read_tokenizer(folder)[1] == []


@pytest.mark.parametrize("ids", [None, [], "x", True])
def test_a_missing_eos_is_refused(folder, ids):
    write(folder, "config.json", eos_token_id=ids)

    with pytest.raises(ConfigError, match="names the EOS token"):
        hf.read_tokenizer(folder)


def test_an_eos_outside_the_vocabulary_is_refused_or_left_out_by_name(folder):
    write(folder, "config.json", eos_token_id=99)
    with pytest.raises(ConfigError, match="EOS id 99"):
        hf.read_tokenizer(folder)
    write(folder, "tokenizer_config.json", eos_token="<end>")
    with pytest.raises(ConfigError, match="EOS '<end>'"):
        hf.read_tokenizer(folder)
    write(folder, "tokenizer_config.json", eos_token=EOT)
    assert note_of(folder) == "config.json names 99 as EOS, which is no token: left out"
    write(folder, "config.json", eos_token_id=[1, -1])
    assert note_of(folder) == "config.json names -1 as EOS, which is no token: left out"


def test_a_tokenizer_in_another_format_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"")

    with pytest.raises(ConfigError, match="save_pretrained"):
        hf.read_tokenizer(tmp_path)


def test_older_models_name_special_tokens_in_a_file_for_them(folder):
    chat = {"chat_template": TEMPLATE.source, "eos_token": EOT}
    write(folder, "tokenizer_config.json", **chat)
    write(folder, "special_tokens_map.json", eos_token={"content": UNK}, bos_token=PAD)

    assert set(read(folder).ends) == {2, 1}
    assert read(folder).template == ChatTemplate(
        TEMPLATE.source, (("bos_token", PAD), ("eos_token", UNK))
    )
    assert read(folder, bos="yes").bos == (0,)
    write(folder, "tokenizer_config.json", **chat, added_tokens_decoder={})
    assert read(folder).ends == (1,)
    (folder / "special_tokens_map.json").write_text("[]")
    with pytest.raises(
        ConfigError, match=r"special_tokens_map\.json: not a JSON object"
    ):
        read(folder)


def test_a_token_that_a_file_names_as_special_is_one(folder):
    write(folder, "tokenizer_config.json", eos_token="c", pad_token="d")
    end = 5  # a word of tokenizer.json

    tokenizer = read(folder)

    assert "tokenizer.json has c as text" in hf.read_tokenizer(folder)[1][0]
    assert encode_with_controls(tokenizer, "ac") == [3, end]
    (folder / "tokenizer.json").write_text(tokenizer.json)
    assert tokenizer_hash(read(folder)) == tokenizer_hash(tokenizer)
    assert "as text" not in note_of(folder)


# --- BOS ---


def put_before(folder, token):
    """Has tokenizer.json put a token before every text; returns its rules."""
    rules = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    rules.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, rules.token_to_id(token))]
    )
    rules.save(str(folder / "tokenizer.json"))
    return rules


def test_bos_is_what_the_tokenizer_puts_before_a_text(folder):
    rules = put_before(folder, EOT)

    tokenizer = read(folder)

    # BOS and EOS may be one token: it begins a prompt, and does not end it.
    assert encode_prompt(tokenizer, "a b") == rules.encode("a b").ids
    assert tokenizer.eos == 1


def test_files_that_differ_on_bos_are_named_with_what_was_done(folder):
    write(folder, "tokenizer_config.json", add_bos_token=True, bos_token=PAD)
    assert note_of(folder) == (
        "tokenizer_config.json says add_bos_token=true, but tokenizer.json puts no BOS "
        "token before a text: done as tokenizer.json says (--bos yes|no decides)"
    )
    assert read(folder).bos == ()
    put_before(folder, PAD)
    write(folder, "tokenizer_config.json", add_bos_token=False)
    assert "says add_bos_token=false, but tokenizer.json puts a BOS" in note_of(folder)
    assert read(folder).bos == (0,)


def test_the_user_may_decide_on_bos(folder):
    write(folder, "tokenizer_config.json", add_bos_token=False, bos_token=PAD)

    assert read(folder, bos="yes").bos == (0,)
    put_before(folder, UNK)
    assert read(folder, bos="yes").bos == (2,)
    assert hf.read_tokenizer(folder, bos="no")[1] == []
    assert read(folder, bos="no").bos == ()


def test_a_bos_that_no_file_names_cannot_be_added(folder):
    with pytest.raises(ConfigError, match="names no bos_token"):
        hf.read_tokenizer(folder, bos="yes")


# --- chat templates ---


@pytest.mark.parametrize(
    "template",
    [TEMPLATE.source, [{"name": "default", "template": TEMPLATE.source}]],
)
def test_the_template_of_the_tokenizer_knows_its_special_tokens(folder, template):
    tokens = {"bos_token": {"content": PAD}, "eos_token": EOT, "pad_token": None}
    write(folder, "tokenizer_config.json", chat_template=template, **tokens)

    assert read(folder).template == TEMPLATE


def test_a_file_of_its_own_comes_before_the_template_of_the_tokenizer(folder):
    write(folder, "tokenizer_config.json", chat_template="x", eos_token=EOT)
    (folder / "chat_template.jinja").write_text(TEMPLATE.source)

    want = ChatTemplate(TEMPLATE.source, (("eos_token", EOT),))
    assert read(folder).template == want


@pytest.mark.parametrize(
    "template", [None, [{"name": "tools", "template": "x"}], ["x"], [{}], 5]
)
def test_a_model_may_have_no_template(folder, template):
    write(folder, "tokenizer_config.json", chat_template=template)

    assert read(folder).template is None


def test_a_template_that_fails_is_set_aside_with_a_note(folder):
    write(folder, "tokenizer_config.json", chat_template="{% for %}")

    assert read(folder).template is None
    assert "chat template cannot be used" in note_of(folder)
    carried = hf.carried_files(hf.open_source(folder))
    assert hf.template_of(carried) is None  # nor does a run use it later


# --- more tokens than the model knows ---


def test_tokens_beyond_the_model_are_noted_and_texts_with_them_refused(folder):
    tokenizer, notes = hf.read_tokenizer(folder, vocab_size=5)

    assert notes == [
        "the model knows 5 tokens, and the tokenizer has more: texts with 'c' are "
        "refused"
    ]
    assert encode_prompt(tokenizer, "a b") == [3, 4]
    with pytest.raises(ConfigError, match="token 'c', of id 5"):
        encode_prompt(tokenizer, "a c")


def test_an_end_beyond_the_model_is_refused(folder):
    write(folder, "config.json", eos_token_id=5)

    with pytest.raises(ConfigError, match="beyond the 4 tokens"):
        hf.read_tokenizer(folder, vocab_size=4)
