"""Files are written whole or not at all, and errors name them."""

import errno

import pytest

from smf_jax.atomic import write_atomic


def test_a_full_disk_is_reported_with_the_file_and_its_code(tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    path.write_bytes(b"old")

    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", fill)

    with pytest.raises(OSError, match=f"No space left on device: '{path}'") as caught:
        write_atomic(path, b"new")

    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
