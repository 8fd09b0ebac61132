"""Repositories are read from the hub's cache if there is no network."""

import os
import shutil

import numpy as np
import pytest
from huggingface_hub import constants

from smf_jax import hf
from smf_jax.config import ConfigError
from tests.tiny import make_model, model_config, named

COMMIT = "0123456789abcdef0123456789abcdef01234567"


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
