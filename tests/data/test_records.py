import gzip
import json
import re

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


@pytest.mark.parametrize("key", ["statements", "documents"])
def test_a_fact_has_id_question_answers_and_statements(tmp_path, key):
    row = {"id": 7, "question": "who ?", "answers": ["me", "I"], key: ["So"]}

    assert read_facts(write(tmp_path, json.dumps(row))) == [
        Fact("7", "who ?", ("me", "I"), ("So",))
    ]


def test_a_fact_may_have_wordings_and_others_that_are_held_out(tmp_path):
    row = {"id": "a", "answers": ["Oslo"], "wordings": ["It lies in [Y].", "Its city:"]}
    row["held_out"] = ["One finds it in [Y] .", "Its city:"]

    (fact,) = read_facts(write(tmp_path, json.dumps(row)))

    assert fact.wordings == ("It lies in", "Its city:")
    assert fact.held_out == ("One finds it in",)  # what is taught is not held out
    assert (fact.question, fact.name) == ("", "It lies in")


PATTERNS = [
    "[X] is in [Y].",
    "In [Y] is [X].",
    "[X] lies in [Y] .",
    "[X]: [Y]",
    "x [Y]",
]


def with_patterns(tmp_path, *rows, patterns=PATTERNS):
    """Returns the facts of rows, and the patterns of one relation."""
    side = write(
        tmp_path, json.dumps({"relation": "R", "patterns": patterns}), "patterns.jsonl"
    )
    path = write(tmp_path, "\n".join(map(json.dumps, rows)))
    return read_facts(path, side)


def test_patterns_of_a_relation_are_filled_and_the_same_ones_held_out(tmp_path):
    rows = [
        {"id": s, "subject": s, "relation": "R", "answers": ["Oslo"]}
        for s in ("Ada", "Bob")
    ]

    ada, bob = with_patterns(tmp_path, *rows)

    assert (ada.wordings, ada.held_out) == (("Ada is in", "Ada:"), ("Ada lies in",))
    assert (bob.wordings, bob.held_out) == (("Bob is in", "Bob:"), ("Bob lies in",))


def test_a_question_stays_beside_patterns_unless_it_is_a_filled_one(tmp_path):
    row = {"subject": "Ada", "relation": "R", "answers": ["Oslo"]}
    cloze = row | {"question": "Ada is the heart of [Y] ."}

    asked, filled = with_patterns(tmp_path, row | {"question": "Where?"}, cloze)

    assert (asked.question, len(asked.wordings)) == ("Where?", 2)
    assert (filled.question, len(filled.wordings)) == ("", 2)
    (alone,) = read_facts(write(tmp_path, json.dumps(cloze)))
    assert (alone.question, alone.wordings) == ("", ("Ada is the heart of",))


@pytest.mark.parametrize(
    ("patterns", "reason"),
    [
        ("[X] [Y]", '"patterns" must be a list of strings'),
        (
            ["In [Y] is [X].", "[Y]", "a [Y]"],
            "relation 'R' has no pattern with one [X]",
        ),
    ],
)
def test_patterns_that_cannot_be_completed_are_refused(tmp_path, patterns, reason):
    with pytest.raises(ConfigError, match=re.escape(reason)):
        with_patterns(tmp_path, {}, patterns=patterns)


def test_one_pattern_alone_is_taught_and_of_two_one_is_held_out(tmp_path):
    row = {"subject": "Ada", "relation": "R", "answers": ["Oslo"]}

    (one,) = with_patterns(tmp_path, row, patterns=PATTERNS[:1])
    (two,) = with_patterns(tmp_path, row, patterns=PATTERNS[:3])

    assert (len(one.wordings), len(one.held_out)) == (1, 0)
    assert (len(two.wordings), len(two.held_out)) == (1, 1)


def test_a_fact_without_question_and_pattern_is_refused(tmp_path):
    row = {"subject": "Ada", "relation": "Q", "answers": ["Oslo"]}

    with pytest.raises(ConfigError, match="no pattern of its relation 'Q'"):
        with_patterns(tmp_path, row)


def test_equal_ids_and_null_are_told_apart_by_their_lines(tmp_path):
    rows = [{"id": id, "question": "q", "answers": ["a"]} for id in ("x", None, "x")]
    path = write(tmp_path, "\r\n".join(map(json.dumps, rows)))

    ids = [fact.id for fact in read_facts(path)]

    assert ids == ["x", "facts.jsonl:2", f"x ({path}:3)"]


def test_an_id_that_another_row_took_already_is_made_another(tmp_path):
    path = tmp_path / "facts.jsonl"
    rows = [
        {"id": id, "question": f"q {n}", "answers": ["a"]}
        for n, id in enumerate(["x", f"x ({path}:3)", "x"])
    ]

    facts = read_facts(write(tmp_path, "\n".join(map(json.dumps, rows))))

    assert [fact.question for fact in facts] == ["q 0", "q 1", "q 2"]
    assert len({fact.id for fact in facts}) == 3


def test_a_filled_pattern_may_not_be_longer_than_a_prompt(tmp_path):
    row = {"subject": "Ada" * 10_000, "relation": "R", "answers": ["Oslo"]}

    with pytest.raises(ConfigError, match=r"a filled pattern has 70,\d{3} characters"):
        with_patterns(tmp_path, row, patterns=["[X] lies " + "far " * 10**4 + "in [Y]"])


def test_a_record_without_id_is_named_by_its_line(tmp_path):
    path = write(tmp_path, '{"id": "t", "text": " one two "}\n\n{"text": "three"}')

    assert read_texts(path) == [Text("t", "one two"), Text("facts.jsonl:3", "three")]


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
        (
            '{"question": "q", "answers": ["a"], "documents": [], "statements": []}',
            'another name of "statements"',
        ),
        ('{"question": "In [Y] is q", "answers": ["a"]}', "must end in [Y]"),
        ('{"wordings": ["[Y]"], "answers": ["a"]}', "must end in [Y]"),
        ('{"wordings": [], "answers": ["a"]}', '"question" must be a string'),
        (
            json.dumps({"question": "q", "answers": ["a" * 10**6]}),
            '"answers" has 1,000,000 characters, and may have 4096',
        ),
        (
            json.dumps({"question": "q" * 10**6, "answers": ["a"]}),
            '"question" has 1,000,000 characters',
        ),
        (
            json.dumps({"id": "i" * 10**6, "question": "q", "answers": ["a"]}),
            '"id" has 1,000,000 characters',
        ),
        (
            json.dumps({"question": "q", "answers": ["a"] * 10_001}),
            "the fact has 10,001 answers",
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
keys = st.sampled_from(
    "id question answers documents statements wordings held_out relation text".split()
)
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
