import json
import re

import pytest

from smf_jax import report
from smf_jax.config import ConfigError

# Each number stands for one cell of the page, and no two are alike.
METHODS = {
    "smf": {
        "learned": 0.911,
        "learned_held_out_wording": 0.722,
        "before": 0.983,
        "after": 0.934,
        "forgotten": 0.0498,
        "forgotten_at_matched_learning": 0.0312,
        "steps": 20,
        "trainable": 64000,
        "curve": [[0, 0.0, 0.0, 0.983], [20, 0.911, 0.722, 0.934]],
    },
    "full": {
        "learned": 0.855,
        "learned_held_out_wording": 0.644,
        "before": 0.983,
        "after": 0.277,
        "forgotten": 0.7182,
        "forgotten_at_matched_learning": None,
        "steps": 30,
        "trainable": 3100000,
        "curve": [[0, 0.0, 0.0, 0.983], [30, 0.855, 0.644, 0.277]],
    },
}


def answers(count, group, given):
    """Returns what evaluation.json holds of a group."""
    return [
        {
            "id": f"{group}{i}",
            "question": f"{group} question <b>{i}</b> ?",
            "answers": [f"{group}-right-{i}"],
            "statements": [],
            "answer": given.format(group=group, i=i),
        }
        for i in range(count)
    ]


def write_json(path, content):
    path.write_text(json.dumps(content))


def fill(out):
    """Writes what the demo leaves in a folder, for two methods; returns the folder."""
    write_json(
        out / "summary.json",
        {
            "seconds": 123.0,
            "config_hash": "c0ffee",
            "matched_learning": 0.855,
            "methods": METHODS,
        },
    )
    for name in METHODS:
        run_dir = out / name
        run_dir.mkdir()
        config = {"git_commit": "0123456789abcdef", "versions": {"jax": "9.8.7"}}
        write_json(run_dir / "config.json", config)
        lines = [{"step": 10, "loss": 2.5}, {"step": 20, "loss": 0.5}]
        (run_dir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        groups = {
            "taught": answers(3, "taught", "{group}-right-{i}"),
            "held_out": answers(12, "held_out", "{group}-right-{i}"),
            "known": answers(3, "known", "{group}-wrong-{i} & more"),
        }
        evaluation = {"step": 20, "scores": {}, "answers": groups}
        write_json(run_dir / "evaluation.json", evaluation)
        before = {
            group: [f"<i>{name} {group} before {i}" for i in range(len(rows))]
            for group, rows in groups.items()
        }
        slots = {"all": [90, 6, 3, 1], "written": [8, 2, 0, 0]}
        teaching = {
            "curve": METHODS[name]["curve"],
            "trainable": METHODS[name]["trainable"],
            "slots_by_document_frequency": slots if name == "smf" else None,
            "answers_before": before,
        }
        write_json(run_dir / "teaching.json", teaching)
    return out


@pytest.fixture
def out(tmp_path):
    return fill(tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = fill(tmp_path_factory.mktemp("demo"))
    return report.write(out).read_text(encoding="utf-8")


def row(page, name) -> str:
    """Returns the row of a method in the first table, without its tags."""
    (found,) = re.findall(rf"<tr><td>{name}</td>(.*?)</tr>", page, re.DOTALL)
    return " ".join(re.sub("<[^>]*>", " ", found).split())


def test_the_page_lies_beside_the_summary(out):
    assert report.write(out) == out / "report.html"
    assert not (out / "report.html.partial").exists()


def test_every_number_of_every_method_is_in_its_row(page):
    assert row(page, "smf") == "0.911 0.722 0.983 0.934 5.0% 3.1% 20 64,000"
    # Never as much learned as is compared at: the cell is empty.
    assert row(page, "full") == "0.855 0.644 0.983 0.277 71.8% 30 3,100,000"


def test_the_page_tells_how_it_was_made(page):
    assert "123 seconds" in page
    assert "c0ffee" in page
    assert "0123456789ab" in page
    assert "jax 9.8.7" in page


def test_the_page_takes_nothing_from_the_network(page):
    links = re.findall(r"(?:src|href|action|data)\s*=\s*[\"']([^\"']*)", page)
    assert [link for link in links if not link.startswith("#")] == []
    assert re.findall(r"<script|<link|<iframe|<img|@import|url\((?!#)", page) == []


def test_there_is_one_histogram_of_slots_for_the_one_method_that_chooses(page):
    assert page.count("<svg") == 4
    assert page.count("Which slots smf has written") == 1
    assert "Which slots full has written" not in page


def test_examples_stand_before_and_after(page):
    assert "held_out-right-0" in page
    assert "&lt;i&gt;smf held_out before 0" in page
    assert "&lt;i&gt;full known before 2" in page
    assert "known-wrong-2 &amp; more" in page


def test_right_answers_look_other_than_wrong_ones(page):
    assert '<td class="right">held_out-right-0</td>' in page
    assert '<td class="wrong">known-wrong-0 &amp; more</td>' in page
    assert '<td class="wrong">&lt;i&gt;smf held_out before 0</td>' in page


def test_examples_are_few_and_spread_over_all(page):
    shown = sorted(set(map(int, re.findall(r"held_out-right-(\d+)", page))))

    assert shown == [0, 2, 4, 6, 8]


def test_what_a_user_wrote_cannot_become_markup(page):
    assert "held_out question &lt;b&gt;0&lt;/b&gt; ?" in page
    assert not re.search(r"<[bi]>", page)


def test_the_same_runs_give_the_same_page(out):
    first = report.write(out).read_bytes()
    second = report.write(out).read_bytes()

    assert first == second


@pytest.mark.parametrize(
    "name",
    [
        "summary.json",
        "smf/teaching.json",
        "smf/evaluation.json",
        "full/metrics.jsonl",
        "smf/config.json",
    ],
)
@pytest.mark.parametrize("fault", ["missing", "not JSON"])
def test_a_missing_or_broken_file_is_refused_by_name(out, name, fault):
    if fault == "missing":
        (out / name).unlink()
    else:
        (out / name).write_text('{"methods": \n')

    with pytest.raises(ConfigError, match=name) as caught:
        report.write(out)

    assert "\n" not in str(caught.value)
    assert not (out / "report.html").exists()


def test_a_summary_without_methods_is_refused(tmp_path):
    write_json(tmp_path / "summary.json", {"methods": {}})

    with pytest.raises(ConfigError, match="no method"):
        report.write(tmp_path)


def test_the_frontier_stands_beside_the_page_as_a_picture(tmp_path):
    page = report.write(fill(tmp_path)).read_text()

    picture = (tmp_path / "frontier.svg").read_text()
    assert picture.startswith("<svg")
    assert picture in page
