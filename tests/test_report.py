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
SUMMARY = {
    "seconds": 123.0,
    "config_hash": "c0ffee",
    "matched_learning": 0.855,
    "n": {"taught": 1001, "held_out": 1002, "known": 4003},
    "methods": METHODS,
}
SLOTS = {"all": [90, 6, 3, 1], "written": [8, 2, 0, 0]}


def answers(count, group, reply):
    """Returns the answers of a group in evaluation.json."""
    return [
        {
            "question": f"{group} question <b>{i}</b> ?",
            "answers": [f"{group}-right-{i}"],
            "answer": reply.format(group=group, i=i),
        }
        for i in range(count)
    ]


def fill(out):
    """Writes the files of a demo of two methods into a folder; returns the folder."""
    files = {"summary.json": SUMMARY}
    groups = {
        "taught": answers(3, "taught", "{group}-right-{i}"),
        "held_out": answers(12, "held_out", "{group}-right-{i}"),
        "known": answers(3, "known", "{group}-wrong-{i} & more"),
    }
    for name, row in METHODS.items():
        (out / name).mkdir()
        metrics = [{"step": 10, "loss": 2.5}, {"step": 20, "loss": 0.5}]
        lines = "".join(json.dumps(row) + "\n" for row in metrics)
        (out / name / "metrics.jsonl").write_text(lines)
        before = {
            group: [f"<i>{name} {group} before {i}" for i in range(len(rows))]
            for group, rows in groups.items()
        }
        files |= {
            f"{name}/config.json": {
                "git_commit": "0123456789abcdef",
                "versions": {"jax": "9.8.7"},
            },
            f"{name}/evaluation.json": {"step": 20, "scores": {}, "answers": groups},
            f"{name}/teaching.json": {
                "curve": row["curve"],
                "slots_by_document_frequency": SLOTS if name == "smf" else None,
                "answers_before": before,
            },
        }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content))
    return out


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def page(out):
    assert report.write(out) == out / "report.html"
    return (out / "report.html").read_text(encoding="utf-8")


def row(page, name) -> str:
    """Returns the row of a method in the first table, without its tags."""
    (found,) = re.findall(rf"<tr><td>{name}</td>(.*?)</tr>", page, re.DOTALL)
    return " ".join(re.sub("<[^>]*>", " ", found).split())


def test_every_number_of_every_method_is_in_its_row(page):
    assert row(page, "smf") == "0.911 0.722 0.983 0.934 5.0% 3.1% 20 64,000"
    # It never learned as much as is compared at: the cell is empty.
    assert row(page, "full") == "0.855 0.644 0.983 0.277 71.8% 30 3,100,000"


def test_the_number_of_questions_of_each_score_is_given(page):
    text = " ".join(re.sub("<[^>]*>", "", page).split())

    assert "learned on 1,001 new facts, reworded on 1,002 new facts" in text
    assert "before and after on 4,003 known facts" in text


def test_time_configuration_commit_and_versions_are_given(page):
    for words in ("123 seconds", "c0ffee", "0123456789ab", "jax 9.8.7"):
        assert words in page


def test_the_page_loads_nothing_from_the_network(page):
    links = re.findall(r"(?:src|href|action|data)\s*=\s*[\"']([^\"']*)", page)
    assert [link for link in links if not link.startswith("#")] == []
    assert re.findall(r"<script|<link|<iframe|<img|@import|url\((?!#)", page) == []


def test_only_the_method_that_selects_slots_has_a_histogram_of_them(page):
    assert page.count("<svg") == 4
    assert page.count("Slots written by smf") == 1
    assert "Slots written by full" not in page


def test_examples_are_marked_right_or_wrong_before_and_after(page):
    assert '<td class="right">held_out-right-0</td>' in page
    assert '<td class="wrong">known-wrong-0 &amp; more</td>' in page
    assert '<td class="wrong">&lt;i&gt;smf held_out before 0</td>' in page
    assert '<td class="wrong">&lt;i&gt;full known before 2</td>' in page


def test_examples_are_evenly_spaced(page):
    shown = sorted(set(map(int, re.findall(r"held_out-right-(\d+)", page))))

    assert shown == [0, 2, 4, 6, 8]


def test_text_of_facts_and_answers_cannot_become_markup(page):
    assert "held_out question &lt;b&gt;0&lt;/b&gt; ?" in page
    assert not re.search(r"<[bi]>", page)


def test_the_same_runs_give_the_same_page_and_frontier(out, page):
    first = (out / "frontier.svg").read_text()

    assert report.write(out).read_text() == page
    assert (out / "frontier.svg").read_text() == first
    assert first.startswith("<svg")
    assert first in page


@pytest.mark.parametrize("fault", ["missing", "not JSON"])
def test_a_missing_or_broken_file_is_refused_by_name(tmp_path, fault):
    out = fill(tmp_path)
    for name in (
        "summary.json",
        "smf/teaching.json",
        "smf/evaluation.json",
        "full/metrics.jsonl",
        "smf/config.json",
    ):
        content = (out / name).read_text()
        (out / name).unlink()
        if fault != "missing":
            (out / name).write_text('{"methods": \n')

        with pytest.raises(ConfigError, match=name) as caught:
            report.write(out)

        assert "\n" not in str(caught.value)
        assert not (out / "report.html").exists()
        (out / name).write_text(content)


def test_a_summary_without_methods_is_refused(tmp_path):
    (tmp_path / "summary.json").write_text('{"methods": {}}')

    with pytest.raises(ConfigError, match="no method"):
        report.write(tmp_path)
