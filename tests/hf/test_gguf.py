"""GGUF files give the logits and ids that `transformers` reads from them."""

import json

import jax
import numpy as np
import pytest

from smf_jax import hf
from smf_jax.config import ConfigError, RopeScalingConfig
from smf_jax.data.tokenizer import encode_prompt, encode_with_controls
from tests import gguf_files, tiny, torch_models
from tests.gguf_files import CONTROLS, VOCAB, WIDTH, write
from tests.hf.kinds import CHATML, CORPUS
from tests.tiny import named

gguf_files.require_gguf()

import gguf  # noqa: E402

TYPES = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q4_K Q6_K".split()
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 24), np.int32)


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def torch_logits(path):
    torch_models.require_torch()
    import torch
    from transformers import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained
    model = load(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS).long()).logits.numpy()


def require_torch_logits(path):
    got = np.asarray(tiny.call(hf.import_model(path), TOKENS)[0])
    want = torch_logits(path)
    assert np.abs(want).max() > 0.5
    assert np.abs(got - want).max() <= 2e-5


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("type_name", TYPES)
def test_logits_are_those_of_transformers(tmp_path, kind, type_name):
    require_torch_logits(write(tmp_path / "a.gguf", kind, type_name))


def test_a_head_of_its_own_is_no_embedding(tmp_path):
    require_torch_logits(write(tmp_path / "a.gguf", is_tied=False))


def tokenizers_of(path):
    torch_models.require_torch()
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return hf.read_tokenizer(path, VOCAB * 2)[0], theirs


TEXTS = [*CORPUS, "  two  spaces\n\n\ttabs \r\n", "1995, 12345", "I'll DON'T", " ", "x"]


@pytest.mark.parametrize("pre", ["smollm", "qwen2", "llama-bpe", "gpt-2", "default"])
def test_ids_of_bytes_are_those_of_transformers(tmp_path, pre):
    def change(writer):
        gguf_files.add_byte_level(writer, pre)
        writer.add_add_bos_token(False)

    ours, theirs = tokenizers_of(write(tmp_path / "a.gguf", change=change))

    texts = [*TEXTS, f"{CONTROLS[1]}owl{CONTROLS[2]}"]
    if pre == "smollm":  # transformers does not know that it splits numbers
        texts = [text for text in texts if not any(map(str.isnumeric, text))]
    for text in texts:
        ids = encode_with_controls(ours, text)
        assert ids == theirs(text).input_ids
        assert ours.rules.decode(ids, False) == theirs.decode(ids)
    assert ours.bos == ()


@pytest.mark.parametrize("prefix", [None, True])
def test_ids_of_pieces_are_those_of_transformers(tmp_path, prefix):
    def change(writer):
        gguf_files.add_sentence_piece(writer)
        if prefix is not None:
            writer.add_add_space_prefix(prefix)

    ours, theirs = tokenizers_of(write(tmp_path / "a.gguf", change=change))

    for text in [*TEXTS, "zyx wvu", "<0x41>"]:
        ids = [*ours.bos, *encode_with_controls(ours, text)]
        assert ids == theirs(text).input_ids
    assert ours.bos == (1,)


def test_pieces_without_a_space_before_them(tmp_path):
    def change(writer):
        gguf_files.add_sentence_piece(writer)
        writer.add_add_space_prefix(False)

    ours, _ = hf.read_tokenizer(write(tmp_path / "a.gguf", change=change))

    ids = encode_prompt(ours, "owl waits")
    assert ours.rules.id_to_token(ids[1])[0] == "o"
    assert ours.rules.decode(ids[1:]) == "owl waits"


def test_a_control_token_that_is_spelled_in_a_text_is_text(tmp_path):
    ours, _ = hf.read_tokenizer(
        write(tmp_path / "a.gguf", change=gguf_files.add_sentence_piece)
    )

    assert 2 not in encode_prompt(ours, "owl </s> owl")


def test_qwen_composes_characters_and_llama_3_keeps_whole_words(tmp_path):
    models = {}
    for pre in ("qwen2", "llama-bpe"):
        path = tmp_path / f"{pre}.gguf"
        write(
            path, change=lambda writer, pre=pre: gguf_files.add_byte_level(writer, pre)
        )
        models[pre], _ = hf.read_tokenizer(path)

    assert encode_prompt(models["qwen2"], "e\u0301") == encode_prompt(
        models["qwen2"], "é"
    )
    assert json.loads(models["llama-bpe"].json)["model"]["ignore_merges"]
    assert models["llama-bpe"].bos == (1,)


def test_every_end_and_the_chat_template_are_read(tmp_path):
    def change(writer):
        gguf_files.add_byte_level(writer, "smollm")
        writer.add_eot_token_id(0)
        writer.add_chat_template(CHATML)

    ours, notes = hf.read_tokenizer(write(tmp_path / "a.gguf", change=change))

    assert (ours.eos, ours.other_ends) == (2, (0,))
    assert ours.template.render([], "hi").startswith("<|im_start|>user\nhi<|im_end|>")
    assert "several tokens end an answer" in notes[0]


def rope_factors(theta, factor):
    """Returns Llama 3's factors: 1 for short waves, `factor` for long ones."""
    waves = 2 * np.pi * theta ** (np.arange(0, WIDTH, 2) / WIDTH)
    kept = np.clip((8192 / waves - 1) / 3, 0, 1)
    return (1 / ((1 - kept) / factor + kept)).astype(np.float32)


def scaled(writer):
    writer.add_rope_freq_base(5e5)


def test_the_scaling_of_llama_3_is_found_in_its_factors(tmp_path):
    tensors = {"rope_freqs.weight": rope_factors(5e5, 8.0)}
    path = write(tmp_path / "a.gguf", change=scaled, tensors=tensors)

    assert hf.import_model(path).config.rope.scaling == RopeScalingConfig(
        type="llama3",
        factor=8.0,
        original_max_position=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )


def test_other_factors_are_refused(tmp_path):
    factors = rope_factors(5e5, 8.0)
    factors[5] *= 1.01
    path = write(
        tmp_path / "a.gguf", change=scaled, tensors={"rope_freqs.weight": factors}
    )

    with pytest.raises(ConfigError, match="is not the scaling of Llama 3"):
        hf.import_model(path)


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        (None, RopeScalingConfig(type="linear", factor=4.0)),
        ("linear", RopeScalingConfig(type="linear", factor=4.0)),
        ("yarn", RopeScalingConfig(type="yarn", factor=4.0, original_max_position=32)),
    ],
)
def test_a_scaling_is_read(tmp_path, kind, want):
    def change(writer):
        if kind is not None:
            writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(32)

    path = write(tmp_path / "a.gguf", "qwen2", change=change)

    assert hf.import_model(path).config.rope.scaling == want


def test_an_export_holds_the_same_numbers_as_float32(tmp_path):
    path = write(tmp_path / "a.gguf", type_name="Q4_1")
    opened = hf.open_source(path)
    model, (tokenizer, _) = hf.import_model(opened), hf.read_tokenizer(opened)

    config, carried = hf.read_config_json(opened), hf.carried_files(opened)
    out = tmp_path / "out"
    hf.export_model(model, tokenizer, out, config=config, carried=carried)

    got, want = named(hf.import_model(out)), named(model)
    assert all(np.array_equal(got[name], want[name]) for name in want)
    assert hf.read_tokenizer(out)[0].rules.to_str() == tokenizer.rules.to_str()
