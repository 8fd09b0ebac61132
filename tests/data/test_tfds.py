"""Facts and texts of tensorflow-datasets, read without TensorFlow and network."""

import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from http.client import BadStatusLine
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from smf_jax import cli
from smf_jax.config import ConfigError, DataConfig, WorldConfig
from smf_jax.data.batches import encode_example, pack_corpus, packed_batches
from smf_jax.data.corpus import load_corpus
from smf_jax.data.examples import taught_examples
from smf_jax.data.fact_batches import fact_batches, stack_facts
from smf_jax.data.records import Fact, Text, read_facts, read_texts
from smf_jax.data.tfds import find
from smf_jax.data.tfds.fields import FACTS, TEXTS
from smf_jax.data.tfds.read import read_data_set
from smf_jax.data.tfds.write import write_data_set
from smf_jax.data.tokenizer import train_tokenizer
from smf_jax.data.world import make_world
from smf_jax.verbs.data import to_tfds
from tests.data.rows import same, take
from tests.data.sets import EXAMPLES, Other, of_catalogue, prepare

TEXT = tfds.features.Text()
QUIET = Console(quiet=True)
SMALL = WorldConfig(known_people=3, new_people=2, first_names=5, last_names=5)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Takes away the network, and the data sets of the user."""

    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))


def write_lines(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def written(path: Path, folder: Path, **changes) -> str:
    """Writes a file as a data set, and returns the source."""
    settings = {"name": None, "patterns": None, "world": SMALL} | changes
    return f"tfds:{to_tfds(str(path), str(folder), **settings, console=QUIET)}"


def refusal(source: str, read=read_facts, *args) -> str:
    """Returns the one line that refuses a source."""
    with pytest.raises(ConfigError) as caught:
        read(source, *args)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(source)
    return message


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, tuple[str, str]]:
    """Returns the file and the data set of 300 facts, and of 300 texts."""
    folder = tmp_path_factory.mktemp("files")
    facts = [
        {
            "id": f"é{n}",
            "question": f"who keeps lamp {n} ?",
            "answers": [f"Ada {n}", "Łucja"],
            "statements": [f"lamp {n} is kept by Ada {n}"] * (n % 3),
            "wordings": [f"the keeper of lamp {n} is"] * (n % 2),
            "held_out": [f"lamp {n} is looked after by"],
        }
        for n in range(300)
    ]
    texts = [{"text": f"text {n} about {n % 7} rivers " * 3} for n in range(300)]
    paths = {
        "facts": write_lines(folder / "facts.jsonl", facts),
        "texts": write_lines(folder / "texts.jsonl", texts),
    }
    return {name: (str(p), written(p, folder / "sets")) for name, p in paths.items()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Returns a folder with one example of each data set of the table."""
    folder = tmp_path_factory.mktemp("prepared")
    for name, row in EXAMPLES.items():
        of_catalogue(name, folder, [row])
    return folder


def test_a_data_set_holds_what_its_file_holds_in_the_same_order(files):
    assert read_facts(files["facts"][1]) == read_facts(files["facts"][0])
    assert read_texts(files["texts"][1]) == read_texts(files["texts"][0])


def corpora(files):
    for which in (0, 1):
        facts, texts = files["facts"][which], files["texts"][which]
        yield load_corpus(DataConfig(facts=facts, background=texts))


def packed_of(corpus, config=DataConfig(batch_size=8)):  # noqa: B008 - frozen
    words = [text.text for text in corpus.texts]
    words += [f"{e.prompt} {e.completion}" for e in corpus.examples]
    tokenizer = train_tokenizer(words, "word", vocab_size=4096)
    return packed_batches(pack_corpus(tokenizer, corpus, config), config, seed=3)


def test_batches_of_pretraining_equal_those_of_the_file(files):
    of_file, of_set = corpora(files)

    assert of_set.hash == of_file.hash
    assert same(take(packed_of(of_set), 40), take(packed_of(of_file), 40))


def test_batches_of_teaching_equal_those_of_the_file(files):
    def batches(source):
        facts = read_facts(source)
        words = [
            " ".join(
                f"{e.prompt} {e.completion}" for e in taught_examples(f, "questions")
            )
            for f in facts
        ]
        tokenizer = train_tokenizer(words, "word", vocab_size=4096)
        rows = [
            [
                encode_example(tokenizer, e, "answer", n)
                for e in taught_examples(fact, "questions")
            ]
            for n, fact in enumerate(facts)
        ]
        return take(fact_batches(stack_facts(rows, 64), 16, seed=1), 20)

    assert same(batches(files["facts"][1]), batches(files["facts"][0]))


def test_batches_resume_at_the_same_record(files):
    corpus = load_corpus(
        DataConfig(facts=files["facts"][1], background=files["texts"][1])
    )
    batches = packed_of(corpus)
    take(batches, 7)
    state = json.loads(json.dumps(batches.get_state()))
    wanted = take(batches, 5)

    resumed = packed_of(corpus)
    resumed.set_state(state)

    assert same(take(resumed, 5), wanted)


def test_rows_are_read_one_by_one(files):
    rows = read_data_set(files["texts"][1], "texts")

    where, row = next(rows)

    assert where == f"{files['texts'][1]}:train#0"
    assert row["text"].startswith("text 0 ")


def test_a_slice_is_a_part_of_a_split(files):
    facts = read_facts(files["facts"][1])

    assert read_facts(files["facts"][1] + ":train[:10%]") == facts[:30]
    assert (
        read_facts(files["facts"][1] + ":train[290:]+train[:10]")
        == facts[290:] + facts[:10]
    )


def test_the_synthetic_world_is_written_with_its_two_questions(tmp_path):
    world = make_world(SMALL)
    source = written(Path("world"), tmp_path)

    known, new = (read_facts(f"{source}:{split}") for split in ("known", "new"))

    assert [fact._replace(wordings=()) for fact in known] == world.known
    assert [fact.wordings for fact in known] == [
        (f.question,) for f in world.known_reworded
    ]
    assert [fact._replace(held_out=()) for fact in new] == world.new
    assert [fact.held_out for fact in new] == [
        (f.question,) for f in world.new_held_out
    ]


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9).map(
    lambda text: f"w {text} w".replace("[Y]", "")
)
some = st.lists(words, max_size=3)
rows = st.fixed_dictionaries(
    {"answers": st.lists(words, min_size=1, max_size=3), "question": words},
    optional={"id": words, "statements": some, "wordings": some, "held_out": some},
)


@settings(max_examples=15)
@example([{"question": "who ?", "answers": ["Ada", "Ada", "<unk>"]}], False)
@given(st.lists(rows, min_size=1, max_size=20), st.booleans())
def test_facts_survive_the_way_through_a_data_set(tmp_path_factory, facts, without):
    if without:  # of a fact with wordings alone
        facts = [
            {"id": n, "answers": row["answers"], "wordings": [row["question"]]}
            for n, row in enumerate(facts)
        ]
    folder = tmp_path_factory.mktemp("round")
    path = write_lines(folder / "facts.jsonl", facts)

    assert read_facts(written(path, folder)) == read_facts(path)


def test_patterns_are_filled_before_facts_are_written(tmp_path):
    facts = [{"answers": ["Oslo"], "subject": "Norway", "relation": "P36"}]
    lines = [{"relation": "P36", "patterns": ["The capital of [X] is [Y]."]}]
    path = write_lines(tmp_path / "facts.jsonl", facts)
    patterns = str(write_lines(tmp_path / "patterns.jsonl", lines))

    (fact,) = read_facts(written(path, tmp_path, patterns=patterns))

    assert fact.wordings == ("The capital of Norway is",)


READ = {
    "natural_questions_open": (
        "natural_questions_open:train#0",
        "who ?",
        ("Ada", "A."),
    ),
    "trivia_qa": ("t1", "who ?", ("Ada", "A.")),
    "web_questions": ("web_questions:train#0", "who ?", ("Ada", "A.")),
    "gsm8k": ("gsm8k:train#0", "2 + 3 ?", ("5",), ("2 + 3 = 5",)),
    "hellaswag": ("hellaswag:train#0", "She falls", ("down.",)),
    "ai2_arc": ("a1", "who ?", ("Ada",)),
    "piqa": ("p1", "Boil it", ("Fire.",)),
    "squad": ("s1", "who ?", ("Ada", "A."), ("It was Ada, called A.",)),
}


@pytest.mark.parametrize("name", FACTS)
def test_facts_of_the_catalogue_are_known_by_the_features_of_its_builders(
    name, prepared, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))

    assert read_facts(f"tfds:{name}") == [Fact(*READ[name])]


@pytest.mark.parametrize("name", TEXTS)
def test_texts_of_the_catalogue_are_known_by_the_features_of_its_builders(
    name, prepared, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))

    (text,) = read_texts(f"tfds:{name}:train[:100%]")

    assert text == Text(f"{name}:train[:100%]#0", EXAMPLES[name]["text"])


def test_a_configuration_and_a_version_may_be_named(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))

    (fact,) = read_facts("tfds:squad/v1.1:3.0.0:train")

    assert fact.id == "s1"


@pytest.mark.parametrize(
    ("name", "example", "reason"),
    [
        ("hellaswag", {"label": -1}, r"#0: endings\[label\]: the right choice is not"),
        ("ai2_arc", {"answerKey": "D"}, "#0: .*: the right choice is not given"),
        ("piqa", {"label": -1}, "#0: .*: the right choice is not given"),
        ("trivia_qa", {"value": "<unk>", "aliases": []}, "#0: the fact has no answers"),
    ],
)
def test_an_example_whose_answer_is_kept_secret_is_refused(
    name, example, reason, tmp_path
):
    full = EXAMPLES[name]
    if name == "trivia_qa":
        example = {"answer": full["answer"] | example}
    folder = of_catalogue(name, tmp_path, [full | example])

    assert re.search(reason, refusal(f"tfds:{folder}"))


def test_a_data_set_of_the_other_kind_is_refused(prepared):
    message = refusal(f"tfds:{prepared}/lm1b/1.1.0")
    assert "holds texts, not facts: name it as background" in message

    message = refusal(f"tfds:{prepared}/web_questions/1.0.0", read_texts)
    assert "holds facts, not texts: name it as facts" in message


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    """Returns a data set whose fields have names of their own."""
    folder = tmp_path_factory.mktemp("other")
    features = {
        "key": np.int64,
        "prompt": TEXT,
        "replies": tfds.features.Sequence({"body": TEXT, "score": np.int64}),
    }
    replies = [{"body": "Ada", "score": 1}, {"body": "A.", "score": 2}]
    examples = [{"key": 7, "prompt": "who ?", "replies": replies}]
    return f"tfds:{prepare(Other(features, folder), examples)}"


def test_fields_of_another_data_set_are_listed_and_can_be_named(other):
    message = refusal(other)
    assert "it has key, prompt, replies.body, replies.score" in message
    assert "--fields question=FIELD,answers=FIELD" in message

    fields = "id=key,question=prompt,answers=replies.body"
    assert read_facts(other, None, fields) == [Fact("7", "who ?", ("Ada", "A."))]
    assert read_texts(other, "text=prompt,answers=x")[0].text == "who ?"


def test_a_key_that_holds_no_values_itself_is_not_taken_but_listed(tmp_path):
    answers = tfds.features.Sequence({"text": TEXT})
    examples = [{"question": "who ?", "answers": [{"text": "Ada"}]}]
    features = {"question": TEXT, "answers": answers}
    source = f"tfds:{prepare(Other(features, tmp_path), examples)}"

    assert "it has answers.text, question: name them" in refusal(source)


def test_of_several_values_one_is_chosen_by_a_number(tmp_path):
    features = {"question": TEXT, "good": np.int64, "a": TEXT, "b": TEXT}
    examples = [{"question": "who ?", "good": 1, "a": "Eve", "b": "Ada"}]
    source = f"tfds:{prepare(Other(features, tmp_path), examples)}"

    (fact,) = read_facts(source, None, "question=question,answers=a+b[good]")

    assert fact.answers == ("Ada",)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ("question=prompt,answers=reply", "has no field 'reply', only key, prompt"),
        ("question=replies.body,answers=prompt", "holds 2 values, and question is one"),
        ("question=prompt,answers=key", "key holds 7, and no text"),
        ("question=prompt,answers=replies.body[replies.score]", "several numbers"),
        ("question=prompt", "which fields hold facts is not known"),
        ("question=prompt,answers=a[", r"'a\[' is not a FIELD"),
    ],
)
def test_fields_that_do_not_fit_are_refused(other, fields, reason):
    with pytest.raises(ConfigError, match=reason):
        read_facts(other, None, fields)


def test_an_unknown_name_is_refused_with_close_ones():
    message = refusal("tfds:squaad:train")

    assert "there is no data set 'squaad'" in message
    assert "close names: squad" in message
    assert "has no configuration 'v3'; it has v2.0, v1.1" in refusal("tfds:squad/v3")


@pytest.mark.parametrize("name", ["gsm8k", "natural_questions_open", "wikipedia"])
def test_without_a_network_one_line_says_at_once_how_to_prepare(name, tmp_path):
    start = time.perf_counter()

    message = refusal(f"tfds:{name}")

    assert time.perf_counter() - start < 5
    assert "cannot be reached: prepare it elsewhere, by python -c" in message
    assert f"copy ~/tensorflow_datasets/{name} into {tmp_path / 'sets'}" in message


@pytest.mark.parametrize(
    ("error", "answers"),
    [
        (urllib.error.HTTPError("u", 403, "forbidden", {}, None), True),
        (BadStatusLine("x"), True),
        (urllib.error.URLError("no route"), False),
        (TimeoutError(), False),
    ],
)
def test_a_host_that_answers_at_all_is_reached(error, answers, monkeypatch):
    def urlopen(request, timeout):
        assert timeout <= 5
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)

    assert find._answers("https://example.com") == answers


def test_with_a_network_a_data_set_is_prepared(monkeypatch, tmp_path):
    builder = tfds.builder_cls("lm1b")
    given = {"train": enumerate([EXAMPLES["lm1b"]])}
    monkeypatch.setattr(builder, "_split_generators", lambda *_: given)
    monkeypatch.setattr(find, "_answers", lambda url: True)

    assert read_texts("tfds:lm1b")[0].text == "A line ."
    assert (tmp_path / "sets/lm1b/1.1.0/dataset_info.json").exists()


def test_a_data_set_whose_code_needs_tensorflow_is_refused(monkeypatch):
    def build(*_):
        raise ModuleNotFoundError("No module named 'tensorflow'")

    monkeypatch.setattr(tfds.builder_cls("trivia_qa"), "_split_generators", build)
    monkeypatch.setattr(find, "_answers", lambda url: True)

    message = refusal("tfds:trivia_qa")

    assert "cannot be prepared here (No module named 'tensorflow')" in message


def test_several_processes_do_not_prepare_a_data_set(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    assert "several processes do not prepare it" in refusal("tfds:gsm8k")


@pytest.mark.parametrize(
    ("split", "reason"),
    [
        ("test", r"Should be one of \['train'\]"),
        ("train[:x]", "Unrecognized split format"),
        ("train[:900]", "incompatible with 300 examples"),
        ("train[5:5]", "has no examples"),
    ],
)
def test_a_split_that_is_not_there_is_refused(files, split, reason):
    assert re.search(reason, refusal(f"{files['facts'][1]}:{split}"))


def test_of_several_splits_one_must_be_named(tmp_path):
    assert "name one of its splits (known, new)" in refusal(
        written(Path("world"), tmp_path)
    )


@pytest.fixture
def hurt(files, tmp_path) -> Path:
    """Returns a copy of the data set of facts, to be damaged."""
    source = Path(files["facts"][1].removeprefix("tfds:"))
    return Path(shutil.copytree(source, tmp_path / "facts/1.0.0"))


def records(folder: Path) -> Path:
    (path,) = folder.glob("*array_record*")
    return path


def test_a_tfrecord_is_refused_with_the_command_that_converts_it(hurt):
    info = hurt / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))

    message = refusal(f"tfds:{hurt}")

    assert "is stored as tfrecord" in message
    assert f"tfds convert_format --dataset_version_dir={hurt}" in message


def test_a_tfrecord_beside_which_there_is_array_record_is_read(hurt, files):
    info = hurt / "dataset_info.json"  # as tfds convert_format leaves it
    formats = {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
    info.write_text(json.dumps(json.loads(info.read_text()) | formats))

    assert read_facts(f"tfds:{hurt}") == read_facts(files["facts"][0])


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [None, "{", "{}", "[]", b"\xff\x00"])
def test_a_folder_with_a_damaged_description_is_refused(hurt, name, content):
    if content is None:
        (hurt / name).unlink()
    else:
        data = content if isinstance(content, bytes) else content.encode()
        (hurt / name).write_bytes(data)

    refusal(f"tfds:{hurt}")


def test_damaged_records_are_refused(hurt):
    path = records(hurt)
    content = path.read_bytes()
    for damaged in (
        content[: len(content) // 2],
        b"",
        content[:100] + b"x" * 9 + content[109:],
        content[: 2**16] + b"x" + content[2**16 + 1 :],
    ):
        path.write_bytes(damaged)
        assert "is damaged, or not readable" in refusal(f"tfds:{hurt}")
    path.unlink()
    assert "is damaged, or not readable" in refusal(f"tfds:{hurt}")


def test_a_folder_above_or_nowhere_is_refused(hurt, tmp_path):
    assert f"such as {hurt}" in refusal(f"tfds:{hurt.parent}")
    assert "no such folder" in refusal(f"tfds:{tmp_path}/nowhere")


def test_a_text_that_is_not_utf8_is_refused(tmp_path):
    path = prepare(Other({"text": TEXT}, tmp_path), [{"text": b"\xff"}])

    assert "#0: text is not UTF-8" in refusal(f"tfds:{path}", read_texts)


def test_a_row_is_checked_like_a_line_of_a_file(tmp_path):
    path = prepare(Other({"text": TEXT}, tmp_path), [{"text": " "}])

    assert (
        refusal(f"tfds:{path}", read_texts) == f'tfds:{path}:train#0: "text" is blank'
    )


def test_an_existing_data_set_is_not_overwritten(files, tmp_path):
    source = written(Path(files["facts"][0]), tmp_path)
    before = read_facts(source)

    with pytest.raises(ConfigError, match=r"facts exists: choose another --name"):
        written(Path(files["facts"][0]), tmp_path)
    assert read_facts(source) == before


def test_a_failed_writing_leaves_nothing(tmp_path, monkeypatch):
    class Interrupted(BaseException):
        pass

    class Broken(str):
        def __new__(cls):
            return super().__new__(cls, "x")

        def encode(self, **kwargs):
            raise Interrupted

    texts = [Text(str(n), "good") for n in range(50)] + [Text("bad", Broken())]
    with pytest.raises(Interrupted):
        write_data_set(tmp_path / "sets", "broken", {"train": texts})

    assert list((tmp_path / "sets").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        ('{"words": "a"}', None, "no file of facts, and no text"),
        ('{"text": "a"}', "A b", "'A b' cannot name a data set"),
        ("", None, "the file is empty"),
    ],
)
def test_what_cannot_be_a_data_set_is_refused(tmp_path, content, name, reason):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)

    with pytest.raises(ConfigError, match=reason):
        written(path, tmp_path / "sets", name=name)
    assert not (tmp_path / "sets").exists()


def test_the_verb_writes_a_data_set_that_is_found_by_its_name(tmp_path, capsys):
    path = tmp_path / "My-texts.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"id": "a", "text": "b"}'))
    folder = str(tmp_path / "sets")

    assert cli.main(["data", "to-tfds", str(path), folder]) == 0
    printed = capsys.readouterr().out
    assert printed == f"tfds:{folder}/my_texts/1.0.0:train: 1 texts\n"
    assert read_texts("tfds:my_texts") == [Text("a", "b")]
    assert cli.main(["data", "write", str(path), folder]) == 2


CHILD = """
import builtins, socket, sys

def refuse(*args, **kwargs):
    raise OSError("no network")

socket.socket.connect = socket.getaddrinfo = refuse
import smf_jax.cli.commands
assert "tensorflow_datasets" not in sys.modules
from smf_jax.data.records import read_facts
print(len(read_facts(sys.argv[1])))
assert "tensorflow" not in sys.modules
"""


def test_tensorflow_is_never_imported_and_the_data_sets_only_if_named(files):
    command = [sys.executable, "-c", CHILD, files["facts"][1]]

    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)

    assert (done.stdout, done.stderr) == ("300\n", "")
