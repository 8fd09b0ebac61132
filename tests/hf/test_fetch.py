"""Repositories come from the hub's cache where there is no network."""

import os

import numpy as np
import pytest
from huggingface_hub import constants

from smf_jax import hf
from smf_jax.config import ConfigError
from smf_jax.data.tokenizer import train_tokenizer
from tests.tiny import make_model, model_config, named

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    # As HF_HUB_OFFLINE=1 and HF_HUB_CACHE set them, read when the library is imported.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.fixture
def cached(tmp_path):
    """Writes a model as the hub's cache keeps it: links to files named by content."""
    model = make_model(model_config(memory=None))
    repository = tmp_path / "models--somebody--tiny"
    snapshot = repository / "snapshots" / COMMIT
    hf.export_model(model, train_tokenizer(["a b"], "word", 9), tmp_path / "plain")
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "plain").iterdir())):
        blob = repository / "blobs" / f"{number:064}"
        os.replace(path, blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return model


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_repository_is_read_from_the_cache(cached, revision):
    folder, commit = hf.fetch("somebody/tiny", revision)

    assert commit == COMMIT
    again = named(hf.import_model(folder))
    for name, array in named(cached).items():
        np.testing.assert_array_equal(again[name], array)


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
def test_what_cannot_be_had_is_refused_in_one_line(cached, source, revision):
    with pytest.raises(ConfigError) as caught:
        hf.fetch(source, revision)

    assert len(str(caught.value).splitlines()) == 1
    assert source in str(caught.value)


def test_a_folder_has_no_revisions(tmp_path):
    assert hf.fetch(str(tmp_path), None) == (tmp_path, None)
    with pytest.raises(ConfigError, match="--revision main is for a repository"):
        hf.fetch(str(tmp_path), "main")
