"""A GGUF file that is broken or unsupported is refused in one line."""

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smf_jax import extras, hf
from smf_jax.config import ConfigError
from smf_jax.hf import gguf as hf_gguf
from tests import gguf_files
from tests.gguf_files import DIM, VOCAB, write
from tests.hf.conftest import POINTER

gguf_files.require_gguf()

import gguf  # noqa: E402


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Returns the bytes of a file."""
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    return write(path, type_name="Q4_0").read_bytes()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("broken") / "a.gguf"


def read(path):
    """Reads a file in every way that an import does."""
    opened = hf.open_source(path)
    hf.import_model(opened)
    hf.read_tokenizer(opened)
    hf.carried_files(opened)


def header(*values: bytes, tensors: int = 0) -> bytes:
    counts = struct.pack("<IQQ", 3, tensors, len(values))
    return b"GGUF" + counts + b"".join(values)


def value(name: str, kind: int, content: bytes) -> bytes:
    return (
        struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + content
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a GGUF file"),
        (b"PK\x03\x04" + bytes(99), "is not a GGUF file"),
        (POINTER.encode(), "is a Git LFS pointer"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is a big-endian file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is of version 1 of GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "the file ends early"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "the file ends early"),
        # Arrays longer than the file, of numbers, strings and arrays.
        (header(value("a", 9, struct.pack("<IQ", 7, 2**60))), "the file ends early"),
        (header(value("a", 9, struct.pack("<IQ", 8, 2**60))), "damaged"),
        (header(value("a", 9, struct.pack("<IQ", 9, 1))), "a value of type 9"),
        (header(value("a", 8, struct.pack("<Q", 2**63))), "the file ends early"),
        (header(value("a", 13, b"")), "a value of type 13"),
        (header(value("a", 8, struct.pack("<Q", 1) + b"\xff")), "not UTF-8"),
        (header(*[value("a", 7, b"\1")] * 2), "holds a twice"),
        (header(value("split.count", 2, b"\2\0")), "is one of 2 parts"),
        (header(), "lacks token_embd.weight"),
    ],
)
def test_a_file_that_is_no_model_is_refused_in_one_line(path, content, message):
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=message) as caught:
        read(path)

    assert len(str(caught.value).splitlines()) == 1


def adds(kind, name, *value):
    return lambda writer: getattr(writer, f"add_{kind}")(name, *value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (adds("uint32", "llama.expert_count", 8), "llama.expert_count=8"),
        (adds("uint32", "llama.rope.dimension_count", 16), "rope.dimension_count=16"),
        (adds("float32", "llama.rope.scale_linear", 2.0), "rope.scale_linear=2.0"),
        (adds("float32", "llama.rope.freq_base", np.inf), "is not one finite number"),
        (
            adds("array", "llama.attention.key_length", [32, 32]),
            "not one finite number",
        ),
        (adds("string", "llama.attention.key_length", "32"), "=32 is not a number"),
        (adds("string", "llama.rope.scaling.type", "longrope"), "'longrope'"),
        (
            adds("uint32", "llama.attention.key_length", 64),
            r"is \[256, 256\], but",
        ),
        (adds("string", "tokenizer.ggml.model", "rwkv"), "tokenizer 'rwkv'"),
        (lambda w: gguf_files.add_byte_level(w, "falcon"), "pre-tokenizer 'falcon'"),
        (lambda w: gguf_files.add_byte_level(w, None), "pre-tokenizer None"),
        (
            adds("uint32", "tokenizer.ggml.unknown_token_id", 999),
            "none of the 320",
        ),
        (adds("array", "tokenizer.chat_template", [1]), "chat_template is no text"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read(write(tmp_path / "a.gguf", change=change))

    assert len(str(caught.value).splitlines()) == 1


def test_another_architecture_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="architecture 'gemma' is not supported"):
        read(write(tmp_path / "a.gguf", "gemma"))


def test_a_type_of_tensors_that_is_not_read_is_named(tmp_path):
    array = gguf.quantize(np.zeros((4, 32), np.float32), gguf.GGMLQuantizationType.Q5_0)

    def change(writer):
        kind = gguf.GGMLQuantizationType.Q5_0
        writer.add_tensor("blk.0.attn_q.bias", array, raw_dtype=kind)

    with pytest.raises(ConfigError, match="bias is Q5_0, not one of F32, F16"):
        read(write(tmp_path / "a.gguf", change=change))


def test_an_unknown_tensor_is_named(tmp_path):
    tensors = {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}

    with pytest.raises(ConfigError, match="weight is unexpected"):
        read(write(tmp_path / "a.gguf", tensors=tensors))


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    tensors = {"output.weight": np.full((VOCAB, DIM), np.inf, np.float32)}

    with pytest.raises(ConfigError, match="holds numbers that are not"):
        read(write(tmp_path / "a.gguf", tensors=tensors))


def test_the_extra_is_named_if_it_is_missing(path, good, monkeypatch):
    path.write_bytes(good)
    monkeypatch.setattr(hf_gguf, "is_installed", lambda extra: False)

    with pytest.raises(ConfigError) as caught:
        read(path)

    assert str(caught.value).endswith(f"needs gguf: {extras.install_command('gguf')}")


@settings(max_examples=40)
@given(st.floats(0, 0.999))
def test_a_truncated_file_is_refused(path, good, part):
    path.write_bytes(good[: int(part * len(good))])

    with pytest.raises(ConfigError):
        read(path)


@settings(max_examples=80)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=3)
)
def test_damaged_bytes_are_refused_or_harmless(path, good, changes):
    end = good.index(b"token_embd.weight") + 2000  # of the header
    damaged = bytearray(good)
    for place, byte in changes:
        damaged[int(place * end)] = byte

    path.write_bytes(damaged)
    with contextlib.suppress(ConfigError):
        read(path)
