"""Whatever a file or a command line holds is read, or refused in one line."""

import dataclasses
import gzip
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smf_jax.cli.files import load_config
from smf_jax.config import ConfigError
from smf_jax.data.records import read_facts, read_texts
from smf_jax.runs.jsonl import read_rows
from smf_jax.slots import document_frequency, patch
from tests import tiny
from tests.faults.children import ROOT
from tests.integration.commands import CONFIG_FILE

many = settings(
    max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read_or_refused(read, *arguments):
    """Returns what is read, or None if that is refused in one line."""
    try:
        return read(*arguments)
    except ConfigError as error:
        line = str(error)
    assert "\n" not in line.strip()
    return None


# --- records ---

keys = st.text() | st.sampled_from(["id", "text"])
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=6,
)
fields = st.dictionaries(
    st.sampled_from(["id", "question", "answers", "documents", "text", "extra"]),
    json_values | st.lists(st.text(), max_size=3),
)
lines = st.lists(
    st.one_of(
        fields.map(lambda row: json.dumps(row).encode()),
        st.binary(max_size=40),
        json_values.map(lambda value: json.dumps(value).encode()),
    ),
    max_size=4,
)


@many
@given(lines=lines, end=st.sampled_from([b"\n", b"\r\n", b"\n\n", b""]))
@pytest.mark.parametrize("read", [read_facts, read_texts, read_rows])
def test_lines_of_anything(tmp_path, read, lines, end):
    path = tmp_path / "file.jsonl"
    path.write_bytes(end.join(lines) + end)

    read_or_refused(read, path)


@many
@given(content=st.binary(max_size=200), whole=st.booleans(), cut=st.integers(0, 60))
def test_compressed_files_of_anything(tmp_path, content, whole, cut):
    path = tmp_path / "file.jsonl.gz"
    packed = gzip.compress(content) if whole else content
    path.write_bytes(packed[: max(len(packed) - cut, 0)])

    read_or_refused(read_texts, path)


# --- overrides ---

options = st.sampled_from(
    """--steps --seed --log-every --on-nan --save.every --save.best --save.keep
    --run-dir --balance-weight --optim.learning-rate --optim.optimizer --teach
    --optim.end-lr-fraction --optim.max-grad-norm --optim.top-t --optim.lora.rank
    --model.dim --data.seq-len
    --model.memory.num-keys --model.memory.layers --data.fact-share --data.facts
    --resume --allow-fallback""".split()
)
values = st.one_of(
    st.text(max_size=8),
    st.floats().map(str),
    st.integers().map(str),
    st.sampled_from(["nan", "inf", "-inf", "1e400", "-1", "0", "None", "skip=", "--"]),
    st.sampled_from(["stop", "skip=3", "auto", "loss", "adamw", "9" * 30, "-0.0"]),
)
arguments = st.lists(
    st.tuples(options, values).flatmap(
        lambda pair: st.sampled_from([[*pair], [pair[0]], [f"{pair[0]}={pair[1]}"]])
    ),
    max_size=3,
).map(lambda parts: [part for pair in parts for part in pair])
CONFIGS = {
    "pretrain": tiny.pretrain_config("run", 9),
    "retrofit": tiny.retrofit_config("base", "run"),
    "finetune": tiny.finetune_config("base", "run"),
}


@pytest.fixture
def load(tmp_path):
    """Returns a function from a verb and overrides to the configuration."""

    def load(verb, arguments):
        path = tmp_path / f"{verb}.py"
        path.write_text(CONFIG_FILE.format(config=CONFIGS[verb]))
        return load_config(type(CONFIGS[verb]), verb, [str(path), *arguments])[0]

    return load


def floats_of(config) -> list[float]:
    found = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found += floats_of(value)
        elif isinstance(value, float):
            found.append(value)
    return found


@pytest.mark.parametrize("value", ["nan", "-inf", "1e400"])
def test_a_number_that_is_not_finite_is_refused_for_every_setting(load, value):
    names = [
        *("balance-weight", "values-lr-scale", "data.fact-share", "data.new-fraction"),
        *("model.rope.theta", "model.norm-eps", "optim.lora.alpha"),
        *("optim.learning-rate", "optim.end-lr-fraction", "optim.weight-decay"),
        *("optim.per-fact.rarity", "optim.per-fact.contrast"),
        "optim.per-fact.answered",
    ]
    assert len(names) == len(floats_of(CONFIGS["pretrain"]))

    for name in [*names, "optim.max-grad-norm"]:  # which is None there
        with pytest.raises((ConfigError, SystemExit)):
            load("pretrain", [f"--{name}", value])


@settings(many, max_examples=60)  # 0.1 s each
@given(arguments=arguments)
@pytest.mark.parametrize("verb", CONFIGS)
def test_overrides_of_anything(load, verb, arguments, capsys):
    config = code = None
    try:
        config = read_or_refused(load, verb, arguments)
    except SystemExit as left:  # tyro refuses
        code = left.code
    if config is not None:
        assert all(math.isfinite(number) for number in floats_of(config))
    if code is not None:
        assert code == 2
        assert capsys.readouterr().err != ""


# --- usage and patches ---


def usage_file(path):
    frequency = np.arange(6, dtype=np.int32).reshape(1, 6)
    read = {"document_shape": (2, 3), "model_hash": "model", "corpus_hash": "corpus"}
    background = document_frequency.Background(frequency, 9)
    document_frequency.save(path, background, **read)


def patch_file(path):
    rows = patch.TableDiff(
        np.array([1, 4], np.int32), np.zeros((2, 3)), np.ones((2, 3))
    )
    patch.save(path, patch.Patch((rows,), "base"))


FILES = {
    "usage": (usage_file, lambda path: document_frequency.load(path, "model", 1, 6)),
    "patch": (patch_file, patch.load),
}
every_file = pytest.mark.parametrize("name", FILES)


@every_file
@many
@given(data=st.data())
def test_files_that_were_changed_anywhere(tmp_path, name, data):
    write, read = FILES[name]
    path = tmp_path / "file.safetensors"
    write(path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.integers(0, 12))
    content[place : place + length] = data.draw(st.binary(max_size=12))
    same = bytes(content) == path.read_bytes()
    path.write_bytes(content)

    got = read_or_refused(read, path)

    assert (got is not None) == same


sizes = st.sampled_from([0, 1, 2, 3, 6, 2**31, 2**62, -1])
offsets = st.sampled_from([0, 4, 8, 24, 48, 2**40, -4])
headers = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["I32", "F32", "F64", "BF16", "U8", "X", 3]),
        "shape": st.lists(sizes, max_size=3),
        "data_offsets": st.lists(offsets, max_size=3),
    }
)
names = ["document_frequency", "0/slots", "0/before", "0/after", "1/slots"]


def with_header(tensors, metadata, size, body) -> bytes:
    header = json.dumps(tensors | {"__metadata__": metadata}).encode()
    size = len(header) if size is None else size
    return size.to_bytes(8, "little") + header + body


@every_file
@many
@given(
    content=st.binary(max_size=300)
    | st.builds(
        with_header,
        st.dictionaries(st.sampled_from(names), headers),
        st.dictionaries(st.sampled_from(["usage", "patch"]), st.text(max_size=30)),
        st.none() | st.sampled_from([0, 7, 2**20, 2**62, 2**64 - 1]),
        st.binary(max_size=60),
    )
)
def test_files_of_anything_and_hostile_headers(tmp_path, name, content):
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)

    assert read_or_refused(FILES[name][1], path) is None


# --- memory ---

LIMITED = """
import resource, sys
from pathlib import Path
from smf_jax.config import ConfigError
from smf_jax.data.records import read_texts
from smf_jax.slots import document_frequency, patch

read = {"texts": read_texts, "patch": patch.load,
        "usage": lambda path: document_frequency.load(path, "model", 1, 6)}
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20,) * 2)
for kind, path in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        read[kind](Path(path))
    except ConfigError as error:
        print(error)
"""


def bomb(path):
    """Writes a line of 1 GiB in a file of 1 MB."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"id": "a", "text": "')
        for _ in range(64):
            file.write(bytes(2**24))


def claims_a_terabyte(path):
    tensor = {"dtype": "I32", "shape": [1, 2**38], "data_offsets": [0, 2**40]}
    path.write_bytes(with_header(dict.fromkeys(names, tensor), {}, None, b""))


def long_header(path):
    path.write_bytes(with_header({}, {}, 99 * 10**6, b""))


def test_a_file_takes_no_memory_for_what_it_claims_to_hold(tmp_path):
    files = {"bomb.jsonl.gz": bomb, "claim": claims_a_terabyte, "header": long_header}
    for name, write in files.items():
        write(tmp_path / name)
    reads = [("texts", "bomb.jsonl.gz")]
    reads += [(k, name) for k in ("usage", "patch") for name in ("claim", "header")]
    argv = [part for kind, name in reads for part in (kind, str(tmp_path / name))]

    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    refused = done.stdout.splitlines()
    assert len(refused) == len(reads)
    for line, (_, name) in zip(refused, reads, strict=True):
        assert str(tmp_path / name) in line
