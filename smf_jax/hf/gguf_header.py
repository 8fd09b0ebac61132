"""The header of a GGUF file: its metadata, and where its tensors are.

Every length is compared with the size of the file before anything of that length is
made: the reader of the package `gguf` takes them as they are.

Source: the specification of GGUF, docs/gguf.md of ggml.
"""

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from smf_jax.config import ConfigError, require

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"
# Types of values, by number; 8 is a string, 9 an array.
_NUMBERS = {
    **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"},
    **{10: "Q", 11: "q", 12: "d"},
}
_STRING, _ARRAY = 8, 9
# Types of tensors by number: name, elements of a block, bytes of a block.
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
_MAX_DIMENSIONS = 4


class Tensor(NamedTuple):
    """A tensor of a GGUF file, of which every byte is in the file."""

    shape: tuple[int, ...]  # rows first
    type: int
    start: int  # bytes from that of the file
    num_bytes: int


class Header(NamedTuple):
    """What a GGUF file says of itself; arrays of numbers are numpy's."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


class _Reader(NamedTuple):
    file: BinaryIO
    path: Path
    size: int

    def take(self, count: int) -> bytes:
        """Returns the next bytes."""
        left = self.size - self.file.tell()
        require(count <= left, f"{self.path}: the file ends early, or is damaged")
        return self.file.read(count)

    def number(self, code: str) -> Any:
        """Returns the next number, of a type by its code in `struct`."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        """Returns the next string, which follows its length."""
        raw = self.take(self.number("Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self.path}: not UTF-8 ({error.reason})") from error


def read_header(path: Path) -> Header:
    """Returns the header of a GGUF file.

    Raises:
      ConfigError: It is none, of another version or byte order, damaged, one of several
        parts, or holds tensors of types that cannot be read.
    """
    with path.open("rb") as file:
        reader = _Reader(file, path, path.stat().st_size)
        require(
            reader.size >= 24 and reader.take(4) == MAGIC, f"{path} is not a GGUF file"
        )
        version = reader.number("I")
        require(
            version & 0xFFFF != 0,
            f"{path} is a big-endian file, and only little-endian ones are read",
        )
        require(
            version in VERSIONS,
            f"{path} is of version {version} of GGUF, not one of {VERSIONS}",
        )
        num_tensors, num_values = reader.number("Q"), reader.number("Q")
        metadata = {}
        for _ in range(num_values):
            name = reader.text()
            require(name not in metadata, f"{path} holds {name} twice")
            metadata[name] = _value(reader, reader.number("I"))
        parts = metadata.get("split.count", 1)
        require(
            isinstance(parts, int) and parts <= 1,
            f"{path} is one of {parts} parts: merge them first, with `llama-gguf-split "
            "--merge`",
        )
        return Header(metadata, _tensors(reader, num_tensors, metadata))


def _value(reader: _Reader, kind: int) -> Any:
    if kind == _STRING:
        return reader.text()
    if kind == _ARRAY:
        kind, count = reader.number("I"), reader.number("Q")
        if kind == _STRING:
            # A string has at least its length.
            require(
                count <= reader.size // 8, f"{reader.path}: damaged: {count} strings"
            )
            return [reader.text() for _ in range(count)]
        dtype = np.dtype(f"<{_code(reader, kind)}")
        return np.frombuffer(reader.take(count * dtype.itemsize), dtype)
    value = reader.number(_code(reader, kind))
    # The decimal number that was rounded to float32.
    return float(str(np.float32(value))) if _NUMBERS[kind] == "f" else value


def _code(reader: _Reader, kind: int) -> str:
    require(kind in _NUMBERS, f"{reader.path}: damaged: a value of type {kind}")
    return _NUMBERS[kind]


def _tensors(reader: _Reader, count: int, metadata: dict) -> dict[str, Tensor]:
    path, found = reader.path, {}
    for _ in range(count):
        name, dimensions = reader.text(), reader.number("I")
        require(
            name not in found and 0 < dimensions <= _MAX_DIMENSIONS,
            f"{path}: {name} is there twice, or has {dimensions} dimensions",
        )
        shape = tuple(reader.number("Q") for _ in range(dimensions))[::-1]
        kind, start = reader.number("I"), reader.number("Q")
        require(
            kind in TYPES,
            f"{path}: {name} is {_type_name(kind)}, not one of "
            f"{', '.join(name for name, _, _ in TYPES.values())}",
        )
        type_name, elements, size = TYPES[kind]
        require(
            0 not in shape and shape[-1] % elements == 0,
            f"{path}: {name} is {list(shape)}, and {type_name} comes in rows of blocks "
            f"of {elements}",
        )
        num_bytes = math.prod(shape) // elements * size
        found[name] = Tensor(shape, kind, start, num_bytes)
    alignment = metadata.get(ALIGNMENT, 32)
    require(
        isinstance(alignment, int) and alignment > 0,
        f"{path}: {ALIGNMENT}={alignment!r} is not a number above 0",
    )
    data = -(-reader.file.tell() // alignment) * alignment
    found = {n: each._replace(start=data + each.start) for n, each in found.items()}
    for name, each in found.items():
        require(
            each.start + each.num_bytes <= reader.size,
            f"{path}: the file ends before {name}: it is truncated, or damaged",
        )
    return found


def _type_name(kind: int) -> str:
    import gguf

    try:
        return gguf.GGMLQuantizationType(kind).name
    except ValueError:
        return f"of type {kind}"
