import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smf_jax.config import ConfigError
from smf_jax.data.records import Fact, Text, read_facts, read_texts

GOOD = '{"id": "a", "question": "who ?", "answers": ["me", "I"]}'
GZIP = gzip.compress(GOOD.encode() * 50, mtime=0)


def write(tmp_path, content: bytes | str, name: str = "facts.jsonl"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path, read=read_facts) -> str:
    """Returns the one line that refuses a file."""
    with pytest.raises(ConfigError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_fact_has_id_question_answers_and_statements(tmp_path):
    row = '{"id": 7, "question": "who ?", "answers": ["me", "I"], "documents": ["So"]}'

    assert read_facts(write(tmp_path, row)) == [
        Fact("7", "who ?", ("me", "I"), ("So",))
    ]


def test_a_record_without_id_is_named_by_its_line(tmp_path):
    path = write(tmp_path, '{"id": "t", "text": " one two "}\n\n{"text": "three"}')

    assert read_texts(path) == [Text("t", "one two"), Text(f"{path}:3", "three")]


@pytest.mark.parametrize(
    "content",
    [GOOD, "\ufeff" + GOOD, GOOD + "\r\n", "\n\r\n  \n" + GOOD + "\n\n"],
    ids=["no newline", "BOM", "CRLF", "blank lines"],
)
def test_line_endings_and_blank_lines_do_not_matter(tmp_path, content):
    want = [Fact("a", "who ?", ("me", "I"))]

    assert read_facts(write(tmp_path, content)) == want
    zipped = gzip.compress(content.encode())
    assert read_facts(write(tmp_path, zipped, "facts.jsonl.gz")) == want


@pytest.mark.parametrize("escaped", [True, False])
def test_emoji_and_right_to_left_text_are_read_exactly(tmp_path, escaped):
    row = {"id": "a", "question": "🦊 מי ?", "answers": ["أنا 👩‍🚀"]}
    path = write(tmp_path, json.dumps(row, ensure_ascii=escaped))

    assert read_facts(path) == [Fact("a", "🦊 מי ?", ("أنا 👩‍🚀",))]


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "facts.jsonl")
    assert "no such file" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["", " \r\n\n"])
def test_a_file_without_records_is_refused(tmp_path, content):
    assert "empty" in refusal(write(tmp_path, content))
    zipped = gzip.compress(content.encode())
    assert "empty" in refusal(write(tmp_path, zipped, "facts.jsonl.gz"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('["a"]', "not a JSON object"),
        ("null", "not a JSON object"),
        ('{"id": ', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"id": ' + "9" * 5000 + "}", "not JSON"),
        (b'{"question": "caf\xe9 ?"}', "not UTF-8"),
        # Half a surrogate pair: JSON can spell it, but it cannot be encoded.
        ('{"question": "q \\ud83d ?", "answers": ["a"]}', ""),
        ('{"answers": ["a"]}', '"question" must be a string'),
        ('{"question": 5, "answers": ["a"]}', '"question" must be a string'),
        ('{"question": " \\t", "answers": ["a"]}', '"question" is blank'),
        ('{"question": "q"}', '"answers" must be a list of strings'),
        ('{"question": "q", "answers": "a"}', '"answers" must be a list of strings'),
        ('{"question": "q", "answers": ["a", 5]}', '"answers" must be a list'),
        ('{"question": "q", "answers": []}', "no answers"),
        ('{"question": "q", "answers": [" "]}', "no answers"),
        (
            '{"question": "q", "answers": ["a"], "documents": "d"}',
            '"documents" must be a list of strings',
        ),
    ],
)
def test_a_broken_fact_is_refused_by_line_and_reason(tmp_path, line, reason):
    line = line if isinstance(line, bytes) else line.encode()
    path = write(tmp_path, GOOD.encode() + b"\n" + line + b"\n" + GOOD.encode())

    message = refusal(path)

    assert message.startswith(f"{path}:2: ")
    assert reason in message


@pytest.mark.parametrize("line", ["{}", '{"text": ["a"]}', '{"text": ""}'])
def test_a_broken_text_is_refused_by_line_and_key(tmp_path, line):
    path = write(tmp_path, line)

    assert f'{path}:1: "text"' in refusal(path, read_texts)


@pytest.mark.parametrize(
    "content",
    [GZIP[:-12], GZIP[:10] + b"\xff" + GZIP[11:], GOOD],
    ids=["truncated", "damaged", "plain text"],
)
def test_a_broken_gzip_is_refused(tmp_path, content):
    refusal(write(tmp_path, content, "facts.jsonl.gz"))


values = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
keys = st.sampled_from(["id", "question", "answers", "documents", "text"])
rows = st.dictionaries(keys, values).map(lambda row: json.dumps(row).encode())
lines = st.lists(rows | st.binary(max_size=20), max_size=4)
contents = lines.map(b"\n".join)


@given(content=contents, cut=st.integers(0, 200), zipped=st.booleans())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_records_or_one_line_of_refusal(tmp_path, content, cut, zipped):
    if zipped:
        content = gzip.compress(content, mtime=0)[:cut]
    path = write(tmp_path, content, "any.jsonl.gz" if zipped else "any.jsonl")
    for read, kind in ((read_facts, Fact), (read_texts, Text)):
        kinds, message = {kind}, ""
        try:
            kinds = {type(record) for record in read(path)}
        except ConfigError as error:
            message = str(error)
        assert kinds == {kind}
        assert "\n" not in message
