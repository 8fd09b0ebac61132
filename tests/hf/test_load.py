"""What comes from elsewhere is refused in one line, whatever is wrong with it."""

import json
import struct

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from smf_jax import hf
from smf_jax.config import ConfigError
from smf_jax.data.tokenizer import train_tokenizer
from tests.tiny import make_model, memory_config, model_config, named

CONFIG, WEIGHTS, INDEX = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "exported"
    tokenizer = train_tokenizer(["a b c"], "word", 9)
    hf.export_model(make_model(model_config(memory=None)), tokenizer, folder)
    return folder


@pytest.fixture
def folder(untouched, tmp_path):
    """Returns a model of one file that a test may spoil."""
    for path in untouched.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def change(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(folder, spoil):
    tensors = load_file(folder / WEIGHTS)
    spoil(tensors)
    save_file(tensors, folder / WEIGHTS)


def split(folder):
    """Spreads the tensors over two files, and returns the index of them."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    files = {"one.safetensors": {}, "two.safetensors": {}}
    placed = {}
    for place, name in enumerate(sorted(tensors)):
        file = list(files)[place % 2]
        files[file][name] = tensors[name]
        placed[name] = file
    for file, part in files.items():
        save_file(part, folder / file)
    return placed


def write_index(folder, placed):
    (folder / INDEX).write_text(json.dumps({"weight_map": placed}))


def refusal(folder, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        hf.import_model(folder, **options)
    (line,) = str(caught.value).splitlines()
    return line


def test_a_model_is_read_from_one_file_and_from_two(folder):
    want = named(hf.import_model(folder))
    write_index(folder, split(folder))
    got = named(hf.import_model(folder))

    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def test_a_model_with_a_memory_comes_back_with_it(tmp_path):
    model = make_model(model_config(memory=memory_config(layers=(0, 1))))
    hf.export_model(model, train_tokenizer(["a"], "word", 9), tmp_path / "out")

    again = hf.import_model(tmp_path / "out")

    assert again.config == model.config
    for name, array in named(model).items():
        np.testing.assert_array_equal(named(again)[name], array)


# --- files ---


def test_pickles_are_never_opened(folder):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")

    assert "pytorch_model.bin may run code" in refusal(folder)


def test_a_folder_without_parameters_is_refused(folder):
    (folder / WEIGHTS).unlink()

    assert f"holds no {WEIGHTS}" in refusal(folder)


@pytest.mark.parametrize(
    "escape",
    ["../../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x.bin", 7],
)
def test_an_index_leads_to_no_other_folder(folder, escape):
    placed = split(folder)
    write_index(folder, placed | {EMBEDDING: escape})

    assert f"places {EMBEDDING} in {escape!r}" in refusal(folder)


def test_a_missing_shard_is_named(folder):
    write_index(folder, split(folder))
    (folder / "two.safetensors").unlink()

    assert "lacks two.safetensors" in refusal(folder)


def test_a_shard_that_holds_other_tensors_than_the_index_says_is_refused(folder):
    placed = split(folder)
    moved = next(name for name in placed if placed[name] == "two.safetensors")
    write_index(folder, placed | {moved: "one.safetensors"})

    line = refusal(folder)

    assert "one.safetensors lacks" in line
    assert moved in line


@pytest.mark.parametrize("content", ["", "[]", "{", '{"weight_map": {}}', "\xff"])
def test_a_broken_index_is_refused(folder, content):
    split(folder)
    (folder / INDEX).write_text(content, encoding="latin-1")

    assert INDEX in refusal(folder)


@pytest.mark.parametrize("claimed", [2**40, 2**63 - 1, 10**6, 7])
def test_a_header_of_another_size_than_it_claims_is_refused(folder, claimed):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", claimed) + content[8:])

    assert "no safetensors file" in refusal(folder)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_file_that_was_cut_is_refused(folder, kept):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:kept])

    assert "no safetensors file" in refusal(folder)


@pytest.mark.parametrize("name", ["chat_template.jinja", "config.json"])
def test_no_link_leads_out_of_the_folder(folder, tmp_path_factory, name):
    secret = tmp_path_factory.mktemp("private") / "secret"
    secret.write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)

    with pytest.raises(ConfigError, match="leads out of"):
        hf.read_model_json(folder, "config.json"), hf.carried_files(folder)


def test_a_text_that_is_too_large_is_not_read(folder):
    with (folder / "chat_template.jinja").open("wb") as file:
        file.truncate(2**34)

    with pytest.raises(ConfigError, match="is above"):
        hf.carried_files(folder)


# --- tensors ---


def test_all_tensors_that_do_not_fit_are_listed(folder):
    def spoil(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((3, 4), np.float32)
        tensors["model.layers.1.mlp.side_proj.weight"] = np.ones((3, 4), np.float32)
        tensors["model.layers.1.mlp.up_proj.weight"] = np.ones((10, 12), np.int8)

    rewrite(folder, spoil)

    line = refusal(folder)

    assert "model.norm.weight is missing" in line
    assert "model.layers.0.mlp.up_proj.weight is [3, 4]" in line
    assert "makes it [10, 12]" in line
    assert "model.layers.1.mlp.side_proj.weight belongs to nothing" in line
    assert "model.layers.1.mlp.up_proj.weight is I8" in line


@pytest.mark.parametrize("layers", [1, 3, 10_000])
def test_a_depth_that_is_not_there_is_refused_before_it_is_built(folder, layers):
    change(folder, num_hidden_layers=layers)

    assert f"holds 2 layers, but config.json says {layers}" in refusal(folder)


def test_of_many_tensors_that_do_not_fit_some_are_named(folder):
    extra = {f"other.{n}": np.ones(2, np.float32) for n in range(1000)}
    rewrite(folder, lambda tensors: tensors.update(extra))

    line = refusal(folder)

    assert "and 995 more" in line
    assert len(line) < 2000


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_by_name(folder, number):
    def spoil(tensors):
        tensors["model.layers.1.self_attn.v_proj.weight"][2, 3] = number

    rewrite(folder, spoil)

    assert "model.layers.1.self_attn.v_proj.weight holds numbers" in refusal(folder)


def test_a_vocabulary_of_another_size_is_refused(folder):
    change(folder, vocab_size=12)

    assert f"{EMBEDDING} is [11, 12]" in refusal(folder)


def test_a_model_that_is_said_to_have_a_head_and_has_none_is_refused(folder):
    change(folder, tie_word_embeddings=False)

    assert f"{HEAD} is missing" in refusal(folder)


def test_a_tied_model_may_bring_its_embedding_as_its_head(folder):
    want = named(hf.import_model(folder))
    rewrite(folder, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING]}))

    np.testing.assert_array_equal(
        named(hf.import_model(folder))["embedding"], want["embedding"]
    )


def test_a_tied_model_with_another_head_is_refused(folder):
    rewrite(folder, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING] + 1}))

    assert "tie_word_embeddings=true" in refusal(folder)


def test_a_tied_model_with_a_head_of_another_shape_is_refused(folder):
    rewrite(folder, lambda tensors: tensors.update({HEAD: np.ones(3, np.float32)}))

    assert "tie_word_embeddings=true" in refusal(folder)


def test_buffers_of_old_files_are_passed_over(folder):
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda tensors: tensors.update({old: np.ones(3, np.float32)}))

    assert hf.import_model(folder).config.num_layers == 2


def test_every_tensor_lies_on_the_device(untouched):
    devices = {array.devices() == {jax.devices()[0]} for array in arrays(untouched)}

    assert devices == {True}


def arrays(folder):
    return named(hf.import_model(folder)).values()
