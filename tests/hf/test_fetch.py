"""Repositories are read from the hub's cache if there is no network."""

import os
import shutil

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from smf_jax import hf
from smf_jax.config import ConfigError
from tests.hf.conftest import POINTER
from tests.tiny import make_model, model_config, named

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_NAMES = (
    "models/llamma",
    "models/other",
    "models/qwen.guf",
)  # of the form OWNER/NAME


@pytest.fixture(scope="module", autouse=True)
def cache(exported, tmp_path_factory):
    """Makes a hub cache with one model: links to files named by content."""
    root = tmp_path_factory.mktemp("cache")
    repository = root / "models--somebody--tiny"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for number, path in enumerate(sorted(exported.iterdir())):
        blob = blobs / f"{number:064}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    with pytest.MonkeyPatch.context() as patch:
        # What HF_HUB_OFFLINE=1 and HF_HUB_CACHE set when the library is imported.
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(root))
        yield


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_repository_is_read_from_the_cache(revision):
    folder, commit = hf.fetch("somebody/tiny", revision)

    assert commit == COMMIT
    loaded = named(hf.import_model(folder))
    for name, array in named(make_model(model_config(memory=None))).items():
        np.testing.assert_array_equal(loaded[name], array)


@pytest.mark.parametrize(
    ("source", "revision"),
    [
        ("somebody/other", None),
        ("somebody/tiny", "unknown"),
        ("somebody", None),
        ("../tiny", None),
        ("/nowhere/at/all", None),
        ("a/b/c", None),
        ("-x/-y", None),
    ],
)
def test_a_source_that_is_not_found_is_refused_in_one_line(source, revision):
    with pytest.raises(ConfigError) as caught:
        hf.fetch(source, revision)

    assert len(str(caught.value).splitlines()) == 1
    assert source in str(caught.value)


def test_a_folder_has_no_revisions(tmp_path):
    assert hf.fetch(str(tmp_path), None) == (tmp_path, None)
    with pytest.raises(ConfigError, match="--revision main is for a repository"):
        hf.fetch(str(tmp_path), "main")


def test_a_gguf_file_has_no_revisions(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF")

    assert hf.fetch(str(path), None) == (path, None)
    with pytest.raises(ConfigError, match="--revision main is for a repository"):
        hf.fetch(str(path), "main")


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")

    with pytest.raises(ConfigError, match="neither a GGUF file nor"):
        hf.fetch(str(path), None)


@pytest.mark.parametrize(
    ("source", "question"),
    [
        ("models/llamma", "(is it models/llama?)"),
        ("./models/Llama", "(is it models/llama?)"),
        ("modells", "(is it models?)"),
        ("models/llama.txt/x", ""),
        ("models/qwen.guf", "(is it models/qwen.gguf?)"),
        ("models/other", ""),
    ],
)
def test_a_mistyped_folder_is_refused_with_a_similar_one(
    source, question, tmp_path, monkeypatch
):
    (tmp_path / "models" / "llama").mkdir(parents=True)
    (tmp_path / "models" / "llama.txt").write_text("")
    (tmp_path / "models" / "qwen.gguf").write_text("")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError) as caught:
        hf.fetch(source, None)

    line = str(caught.value)
    assert line.startswith(f"{source}: no such folder{question and ' '}{question}, and")
    assert ("the hub cannot be reached" in line) == (source in HUB_NAMES)


@pytest.mark.parametrize("reason", ["", "[Errno -2] Name or service not known\nmore"])
def test_a_hub_that_cannot_be_reached_is_reported_in_one_line(reason, monkeypatch):
    def download(*arguments, **options):
        raise HTTPError(reason)

    HTTPError = HfHubHTTPError.__bases__[0]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    with pytest.raises(ConfigError) as caught:
        hf.fetch("models/llamma", None)

    assert str(caught.value) == (
        "models/llamma: no such folder, and the hub cannot be reached or has no such "
        f"repository or revision: {reason.partition(chr(10))[0] or 'HTTPError'}"
    )


def test_a_tokenizer_that_a_clone_lacks_is_named(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "clone")
    (folder / "tokenizer.json").write_text(POINTER)

    with pytest.raises(ConfigError, match=r"tokenizer\.json is a Git LFS pointer"):
        hf.fetch(str(folder), None)
