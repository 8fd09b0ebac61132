import json
import re

import pytest

from smf_jax import report
from smf_jax.config import ConfigError
from smf_jax.runs.files import write_json, write_result


# Each number stands for one cell of the page, and no two are alike.
def scores(n, share, low, high):
    return {"n": n, "exact_match": share, "exact_match_95": [low, high]}


METHODS = {
    "smf": {
        "taught": scores(1001, 0.911, 0.901, 0.921),
        "held_out": scores(1002, 0.722, 0.712, 0.732),
        "known": scores(4003, 0.934, 0.924, 0.944),
        "known_before": 0.983,
        "forgetting": {
            "forgotten": 0.0498,
            "forgotten_95": [0.0411, 0.0588],
            "right_before": 3935,
            "lost": ["known 1", "known 2"],
            "gained": [],
        },
        "forgotten_at_equal": 0.0312,
        "text_loss": {"n": 64, "rise": [0.0123, [0.0101, 0.0144]]},
        "learning_rate": 1500.0,
        "batch_size": 32,
        "steps": 20,
        "trainable": 64000,
        "curve": [[0, 0.0, 0.0, 0.983], [20, 0.911, 0.722, 0.934]],
    },
    "full": {
        "taught": scores(1001, 0.855, 0.845, 0.865),
        "held_out": scores(1002, 0.644, 0.634, 0.654),
        "known": scores(4003, 0.277, 0.267, 0.287),
        "known_before": 0.983,
        "forgetting": None,
        "forgotten_at_equal": None,
        "text_loss": None,
        "learning_rate": 3e-4,
        "batch_size": 33,
        "steps": 30,
        "trainable": 3100000,
        "curve": [[0, 0.0, 0.0, 0.983], [30, 0.855, 0.644, 0.277]],
    },
}
SUMMARY = {
    "seconds": 123.0,
    "config_hash": "c0ffee",
    "command": "smf demo --facts 'my <facts>.jsonl'",
    "seed": 77,
    "data": ["my <facts>.jsonl: 4003 facts"],
    "rates": "No rate was swept.",
    "equal_taught": 0.855,
    "methods": METHODS,
}
SLOTS = {"all": [90, 6, 3, 1], "written": [8, 2, 0, 0]}


def answers(count, group, reply):
    """Returns the answers of a group in evaluation.json."""
    return [
        {
            "fact": f"{group} {i}",
            "text": f"{group} question <b>{i}</b> ?",
            "answers": [f"{group}-right-{i}"],
            "is_question": True,
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
                "forgetting": row["forgetting"],
                "slots_by_document_frequency": SLOTS if name == "smf" else None,
                "answers_before": before,
            },
        }
    for name, content in files.items():
        write = write_json if name.endswith("config.json") else write_result
        write(out / name, content)
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
    assert row(page, "smf") == (
        "0.911 [0.901, 0.921], n=1,001 0.722 [0.712, 0.732], n=1,002 0.983 "
        "0.934 [0.924, 0.944], n=4,003 5.0% [4.1%, 5.9%], n=3,935 3.1% "
        "+0.0123 [+0.0101, +0.0144], n=64 rows 1500 20 32 64,000"
    )
    # It never learned as much as is compared at, and had no texts: cells are empty.
    assert row(page, "full") == (
        "0.855 [0.845, 0.865], n=1,001 0.644 [0.634, 0.654], n=1,002 0.983 "
        "0.277 [0.267, 0.287], n=4,003 0.0003 30 33 3,100,000"
    )
    assert "No rate was swept." in page


def test_forgotten_facts_are_shown(page):
    forgotten = page[page.index("<h2>Forgotten facts") :]

    assert "2 of 3,935 were lost" in forgotten
    assert "known question &lt;b&gt;2&lt;/b&gt; ?" in forgotten
    assert "known question &lt;b&gt;0&lt;/b&gt; ?" not in forgotten
    assert "The base answered no known fact right." in forgotten


def test_new_facts_are_shown_in_both_wordings(page):
    shown = page[page.index("<h2>Answers") : page.index("<h2>Forgotten")]

    for kind in ("taught", "held-out wording", "known"):
        assert f"<td>{kind}</td>" in shown


def test_time_configuration_commit_and_versions_are_given(page):
    for words in ("123 seconds", "c0ffee", "0123456789ab", "jax 9.8.7", "Seed 77"):
        assert words in page
    assert "smf demo --facts &#39;my &lt;facts&gt;.jsonl&#39;" in page
    assert "<li>my &lt;facts&gt;.jsonl: 4003 facts</li>" in page


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


@pytest.mark.parametrize("fault", ["missing", "not JSON", "changed"])
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
        if fault == "not JSON":
            (out / name).write_text('{"methods": \n')
        if fault == "changed":
            if not name.endswith(("y.json", "g.json", "n.json")) or "config" in name:
                (out / name).write_text(content)
                continue
            (out / name).write_text(content.replace("0", "1", 1))

        with pytest.raises(ConfigError, match=name) as caught:
            report.write(out)

        assert "\n" not in str(caught.value)
        assert not (out / "report.html").exists()
        (out / name).write_text(content)


def test_a_summary_without_methods_is_refused(tmp_path):
    write_result(tmp_path / "summary.json", {"methods": {}})

    with pytest.raises(ConfigError, match="no method"):
        report.write(tmp_path)


# --- of one command ---

TAUGHT = {
    "method": "smf",
    "counts": {"new": 1001, "known": 77},
    "before": {"taught": scores(1001, 0.011, 0.001, 0.021)},
    "after": {"taught": METHODS["smf"]["taught"]},
    "kept": METHODS["smf"]["forgetting"] | {"share": 0.951, "share_95": [0.944, 0.957]},
    "texts": {"n": 64, "before": 3.3311, "rise": [0.0123, [0.0101, 0.0144]]},
    "budget": None,
    "curve": METHODS["smf"]["curve"],
    "command": "smf teach 'my <model>' --facts f",
    "config": {"seed": 5},
    "config_hash": "c0ffee",
    "seconds": {"import": 1.0, "teach": 122.0},
    "run": "runs/a <run>",
    "base": "runs/base",
    "patch": "runs/a <run>/patch.safetensors",
    "asked": ["taught question <b>0</b> ?"],
}


def write_taught(out, **changes) -> str:
    """Returns the page of what was taught, in a folder of a demo."""
    write_result(out / "teach.json", TAUGHT | changes)
    return report.write_teach(out).read_text(encoding="utf-8")


def test_what_was_taught_is_in_its_table(out):
    page = write_taught(out)
    table = page[: page.index('<div class="figures">')]

    assert row(table, "taught") == (
        "0.011 [0.001, 0.021], n=1,001 0.911 [0.901, 0.921], n=1,001"
    )
    assert row(table, "kept") == "1.000 0.951 [0.944, 0.957], n=3,935"
    assert row(table, "text loss") == "3.3311 +0.0123 [+0.0101, +0.0144], n=64 rows"
    assert "2 of\n3,935 were lost" in page
    assert "Seed 5; 123 seconds" in page
    assert page.count("<svg") == 3


def test_the_next_commands_are_on_the_page_as_text(out):
    page = write_taught(out)

    assert "smf ask &#39;runs/a &lt;run&gt;&#39;" in page
    assert "smf patch revert" in page
    assert "<run>" not in page
    assert "<model>" not in page


def test_what_became_of_a_budget_is_on_the_page(out):
    limits = {"forget_at_most": 0.05, "text_loss_at_most": 0.05}
    budget = limits | {"broken": [], "step": 20}

    assert "was kept at the full rate." in write_taught(out, budget=budget)


def test_a_model_that_knew_nothing_has_no_row_of_what_it_kept(out):
    page = write_taught(out, kept=None, texts=None)

    assert "<td>kept</td>" not in page
    assert "No fact that the model knew was at hand." in page
