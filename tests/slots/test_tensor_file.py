import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from smf_jax.config import ConfigError
from smf_jax.slots import tensor_file

ARRAYS = {"b": np.arange(6, dtype=np.int32).reshape(2, 3), "a": np.float16([[-0.0]])}
METADATA = {"name": "x", "shape": [1, 2]}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some.safetensors"
    tensor_file.save(path, "usage", ARRAYS, METADATA)
    return path


def refusal(path, kind="usage") -> str:
    with pytest.raises(ConfigError, match=r"some\.safetensors") as caught:
        tensor_file.load(path, kind)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_arrays_and_metadata_come_back_as_they_were_saved(path):
    arrays, metadata = tensor_file.load(path, "usage")

    assert metadata == METADATA
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array, strict=True)


def test_a_byte_flipped_or_cut_away_anywhere_is_found(path):
    content = path.read_bytes()

    for index in range(len(content)):
        flipped = bytearray(content)
        flipped[index] ^= 1 + index % 255
        path.write_bytes(flipped)
        refusal(path)
        path.write_bytes(content[:index])
        refusal(path)


@pytest.mark.parametrize("content", [b"\x00" * 100, b"\xff" * 100, b"{}", b"[1, 2]"])
def test_garbage_is_refused(path, content):
    path.write_bytes(content)

    assert "is not a usage file" in refusal(path)


def test_a_file_of_another_kind_is_refused(path):
    assert "is not a patch file" in refusal(path, "patch")


@pytest.mark.parametrize("metadata", [None, {"usage": "{}"}, {"sha256": ""}], ids=str)
def test_a_safetensors_file_of_something_else_is_refused(path, metadata):
    save_file(ARRAYS, path, metadata)

    assert "is not a usage file" in refusal(path)


def test_a_missing_file_is_refused(path):
    path.unlink()

    assert "does not exist" in refusal(path)


def test_a_save_that_fails_leaves_the_file_before_it_whole(path):
    before = path.read_bytes()
    path.with_name(path.name + ".partial").mkdir()  # where the file would be written

    with pytest.raises((OSError, SafetensorError)):
        tensor_file.save(path, "usage", ARRAYS, {})

    assert path.read_bytes() == before


def test_a_save_leaves_nothing_beside_the_file(path):
    assert list(path.parent.iterdir()) == [path]
