"""Faulty models are refused in one line."""

import json
import shutil
import struct

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from smf_jax import hf
from smf_jax.config import ConfigError
from tests.hf.conftest import POINTER
from tests.tiny import make_model, memory_config, model_config, named

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def folder(exported, tmp_path):
    """Returns a model in one file that a test may damage."""
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def rewrite(folder, **changes):
    """Replaces tensors by name; None removes one."""
    tensors = load_file(folder / WEIGHTS) | changes
    kept = {name: array for name, array in tensors.items() if array is not None}
    save_file(kept, folder / WEIGHTS)


def split(folder):
    """Spreads the tensors over two files, and returns their index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    files = {"one.safetensors": {}, "two.safetensors": {}}
    weight_map = {}
    for number, name in enumerate(sorted(tensors)):
        file = list(files)[number % 2]
        files[file][name] = tensors[name]
        weight_map[name] = file
    for file, part in files.items():
        save_file(part, folder / file)
    return weight_map


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def refusal(folder) -> str:
    with pytest.raises(ConfigError) as caught:
        hf.import_model(folder)
    (line,) = str(caught.value).splitlines()
    return line


def test_a_model_is_loaded_from_one_file_and_from_two(folder):
    want = named(hf.import_model(folder))
    write_index(folder, split(folder))
    got = named(hf.import_model(folder))

    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    assert {array.device for array in got.values()} == {jax.devices()[0]}


def test_memory_layers_are_loaded_as_they_were_exported(tmp_path, tokenizer):
    model = make_model(model_config(memory=memory_config(layers=(0, 1))))
    hf.export_model(model, tokenizer, tmp_path / "out")

    loaded = hf.import_model(tmp_path / "out")

    assert loaded.config == model.config
    for name, array in named(model).items():
        np.testing.assert_array_equal(named(loaded)[name], array)


# --- files ---


def test_pickles_are_never_opened(folder):
    (folder / WEIGHTS).unlink()
    assert f"holds no {WEIGHTS}" in refusal(folder)

    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    assert "pytorch_model.bin may run code" in refusal(folder)


@pytest.mark.parametrize(
    "escape",
    ["../../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x.bin", 7],
)
def test_an_index_leads_to_no_other_folder(folder, escape):
    write_index(folder, split(folder) | {EMBEDDING: escape})

    assert f"maps {EMBEDDING} to {escape!r}" in refusal(folder)


def test_a_missing_file_is_named(folder):
    write_index(folder, split(folder))
    (folder / "two.safetensors").unlink()

    assert "lacks two.safetensors" in refusal(folder)


def test_a_file_with_other_tensors_than_the_index_says_is_refused(folder):
    weight_map = split(folder)
    moved = next(name for name in weight_map if weight_map[name] == "two.safetensors")

    write_index(folder, weight_map | {moved: "one.safetensors"})
    line = refusal(folder)
    assert "one.safetensors holds other tensors" in line
    assert moved in line

    del weight_map[moved]
    write_index(folder, weight_map)
    assert "two.safetensors holds other tensors" in refusal(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"weight_map": {}}', "\xff"])
def test_a_broken_index_is_refused(folder, content):
    split(folder)
    (folder / INDEX).write_text(content, encoding="latin-1")

    assert INDEX in refusal(folder)


DAMAGE = [lambda content, kept=kept: content[:kept] for kept in (0, 5, 100, -1)]
DAMAGE += [
    lambda content, size=size: struct.pack("<Q", size) + content[8:]
    for size in (2**40, 2**63 - 1, 10**6, 7)
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_truncated_file_and_a_wrong_header_size_are_refused(folder, damage):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(damage(content))

    assert "not a safetensors file" in refusal(folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, INDEX, "two.safetensors"])
def test_a_pointer_in_place_of_a_file_is_refused_with_the_way_out(folder, name):
    if name not in (CONFIG, WEIGHTS):
        write_index(folder, split(folder))
    (folder / name).write_text(POINTER)

    line = refusal(folder)

    assert f"{folder / name} is a Git LFS pointer, not the file itself" in line
    assert f"run `git lfs pull` in {folder}" in line


@pytest.mark.parametrize("name", ["chat_template.jinja", "config.json"])
def test_no_link_leads_out_of_the_folder(folder, tmp_path_factory, name):
    secret = tmp_path_factory.mktemp("private") / "secret"
    secret.write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)

    opened = hf.open_source(folder)

    with pytest.raises(ConfigError, match=r"leads out of .* `cp -rL .* COPY`"):
        hf.read_config_json(opened), hf.carried_files(opened)


def test_a_folder_of_links_is_imported_by_one_of_the_ways_that_the_refusal_names(
    folder, tmp_path_factory
):
    links = tmp_path_factory.mktemp("links")
    for path in folder.iterdir():
        (links / path.name).symlink_to(path)
    copy = shutil.copytree(links, links.with_name("copy"), symlinks=False)

    assert (
        f"import the folder that it leads to, or copy this one with `cp -rL {links}"
        in (refusal(links))
    )
    for way_out in (folder, copy):
        assert hf.import_model(way_out).config.num_layers == 2


def test_a_text_that_is_too_large_is_not_read(folder):
    with (folder / "chat_template.jinja").open("wb") as file:
        file.truncate(2**34)

    with pytest.raises(ConfigError, match="is above"):
        hf.carried_files(hf.open_source(folder))


# --- tensors ---


def test_all_tensors_that_do_not_match_are_listed(folder):
    layers = "model.layers"
    changes = {
        "model.norm.weight": None,
        f"{layers}.0.mlp.up_proj.weight": np.ones((3, 4), np.float32),
        f"{layers}.1.mlp.side_proj.weight": np.ones((3, 4), np.float32),
        f"{layers}.1.mlp.up_proj.weight": np.ones((10, 12), np.int8),
    }
    rewrite(folder, **changes)

    line = refusal(folder)

    assert "model.norm.weight is missing" in line
    assert f"{layers}.0.mlp.up_proj.weight is [3, 4], but config.json says" in line
    assert f"{layers}.1.mlp.side_proj.weight is unexpected" in line
    assert f"{layers}.1.mlp.up_proj.weight is I8" in line


def test_of_many_tensors_that_do_not_match_five_are_named(folder):
    rewrite(folder, **{f"other.{n}": np.ones(2, np.float32) for n in range(1000)})

    line = refusal(folder)

    assert line.count("is unexpected") == 5
    assert "and 995 more" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 1}, "holds 2 layers, but config.json says 1"),
        ({"num_hidden_layers": 10_000}, "holds 2 layers, but config.json says 10000"),
        ({"vocab_size": 12}, f"{EMBEDDING} is [11, 12]"),
        ({"tie_word_embeddings": False}, f"{HEAD} is missing"),
    ],
)
def test_tensors_of_another_model_are_refused(folder, changes, message):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))

    assert message in refusal(folder)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(folder, number):
    name = "model.layers.1.self_attn.v_proj.weight"
    array = load_file(folder / WEIGHTS)[name]
    array[2, 3] = number
    rewrite(folder, **{name: array})

    assert f"{name} holds numbers that are not finite" in refusal(folder)


def test_the_head_of_a_tied_model_may_only_be_its_embedding(folder):
    embedding = load_file(folder / WEIGHTS)[EMBEDDING]

    rewrite(folder, **{HEAD: embedding})
    loaded = named(hf.import_model(folder))
    np.testing.assert_array_equal(loaded["embedding"], embedding)
    for other in (embedding + 1, np.ones(3, np.float32)):
        rewrite(folder, **{HEAD: other})
        assert "tie_word_embeddings=true" in refusal(folder)


def test_buffers_in_old_files_are_ignored(folder):
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, **{old: np.ones(3, np.float32)})

    assert hf.import_model(folder).config.num_layers == 2
