import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smf_jax.config import ConfigError
from smf_jax.data.records import Fact, Text, read_facts, read_texts

GOOD = '{"id": "a", "question": "who ?", "answers": ["me", "I"]}'


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
    path = write(
        tmp_path,
        '{"id": 7, "question": "who ?", "answers": ["me", "I"], "documents": ["It is '
        'me"]}',
    )

    assert read_facts(path) == [Fact("7", "who ?", ("me", "I"), ("It is me",))]


def test_a_text_has_id_and_text(tmp_path):
    path = write(tmp_path, '{"id": "t", "text": " one two "}')

    assert read_texts(path) == [Text("t", "one two")]


def test_a_record_without_id_is_named_by_its_line(tmp_path):
    path = write(tmp_path, '\n{"text": "one"}')

    assert read_texts(path) == [Text(f"{path}:2", "one")]


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD + "\n",
        "\ufeff" + GOOD,
        GOOD + "\r\n",
        "\n\r\n  \n" + GOOD + "\n\n",
    ],
    ids=["no newline", "newline", "BOM", "CRLF", "blank lines"],
)
def test_how_lines_end_and_begin_does_not_matter(tmp_path, content):
    assert read_facts(write(tmp_path, content)) == [Fact("a", "who ?", ("me", "I"))]


def test_a_gzip_reads_like_its_content(tmp_path):
    path = write(tmp_path, gzip.compress(GOOD.encode()), "facts.jsonl.gz")

    assert read_facts(path) == [Fact("a", "who ?", ("me", "I"))]


@pytest.mark.parametrize("escaped", [True, False])
def test_emoji_and_right_to_left_text_come_back_as_they_were(tmp_path, escaped):
    row = {"id": "a", "question": "🦊 מי ?", "answers": ["أنا 👩‍🚀"]}
    path = write(tmp_path, json.dumps(row, ensure_ascii=escaped))

    assert read_facts(path) == [Fact("a", "🦊 מי ?", ("أنا 👩‍🚀",))]


def test_a_missing_file_is_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "facts.jsonl")


def test_a_folder_is_refused(tmp_path):
    refusal(tmp_path)


@pytest.mark.parametrize("content", ["", "\n", " \r\n\n"])
def test_a_file_without_records_is_refused(tmp_path, content):
    assert "empty" in refusal(write(tmp_path, content))


def test_an_empty_gzip_is_refused(tmp_path):
    assert "empty" in refusal(write(tmp_path, gzip.compress(b""), "facts.jsonl.gz"))


def test_bad_json_is_refused_by_line(tmp_path):
    path = write(tmp_path, "\n".join([GOOD] * 6 + ['{"id": ', GOOD]))

    assert f"{path}:7: not JSON" in refusal(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('["a"]', "not a JSON object"),
        ("null", "not a JSON object"),
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
def test_a_broken_fact_is_refused_by_line_and_key(tmp_path, line, reason):
    path = write(tmp_path, f"{GOOD}\n{line}\n")

    message = refusal(path)

    assert message.startswith(f"{path}:2: ")
    assert reason in message


@pytest.mark.parametrize("line", ["{}", '{"text": ["a"]}', '{"text": ""}'])
def test_a_broken_text_is_refused_by_line_and_key(tmp_path, line):
    path = write(tmp_path, line)

    assert f'{path}:1: "text"' in refusal(path, read_texts)


def test_bytes_that_are_not_utf_8_are_refused_by_line(tmp_path):
    path = write(tmp_path, GOOD.encode() + b'\n{"question": "caf\xe9 ?"}')

    assert f"{path}:2: not UTF-8" in refusal(path)


def test_half_a_surrogate_pair_is_refused_by_line(tmp_path):
    # JSON can spell it, but no text that holds it can be encoded or written.
    path = write(tmp_path, '{"question": "q \\ud83d ?", "answers": ["a"]}')

    assert f"{path}:1: " in refusal(path)


def test_nesting_without_end_is_refused_by_line(tmp_path):
    path = write(tmp_path, "[" * 100_000)

    assert f"{path}:1: not JSON" in refusal(path)


def test_a_number_without_end_is_refused_by_line(tmp_path):
    path = write(tmp_path, '{"id": ' + "9" * 5000 + "}")

    assert f"{path}:1: not JSON" in refusal(path)


def test_a_truncated_gzip_is_refused(tmp_path):
    whole = gzip.compress(GOOD.encode() * 50, mtime=0)

    refusal(write(tmp_path, whole[:-12], "facts.jsonl.gz"))


def test_a_damaged_gzip_is_refused(tmp_path):
    whole = gzip.compress(GOOD.encode() * 50, mtime=0)

    refusal(write(tmp_path, whole[:10] + b"\xff" + whole[11:], "facts.jsonl.gz"))


def test_plain_text_named_gz_is_refused(tmp_path):
    refusal(write(tmp_path, GOOD, "facts.jsonl.gz"))


values = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
keys = st.sampled_from(["id", "question", "answers", "documents", "text"])
rows = st.dictionaries(keys, values).map(lambda row: json.dumps(row).encode())
lines = st.lists(rows | st.binary(max_size=20), max_size=4)
contents = lines.map(b"\n".join)


def outcome(read, path):
    try:
        return read(path)
    except ConfigError as error:
        return str(error)


@given(content=contents, cut=st.integers(0, 200), zipped=st.booleans())
@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_bytes_give_records_or_one_line_of_refusal(tmp_path, content, cut, zipped):
    if zipped:
        content = gzip.compress(content, mtime=0)[:cut]
    path = write(tmp_path, content, "any.jsonl.gz" if zipped else "any.jsonl")
    for read, kind in ((read_facts, Fact), (read_texts, Text)):
        match outcome(read, path):
            case str(message):
                assert "\n" not in message
            case records:
                assert {type(record) for record in records} == {kind}
