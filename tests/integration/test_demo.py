"""A tiny demo: what it writes and prints, and what it does not do twice."""

import io
import json
import shlex
import shutil

import pytest
from rich.console import Console

from smf_jax import demo, report
from smf_jax.config import ConfigError, OptimConfig
from tests.tiny import pretrain_config

SMF = OptimConfig(method="smf", optimizer="sgd", top_t=3)
# Two recipes of one method, which share compiled programs.
RECIPES = {
    "fast": demo.Recipe(5.0, SMF, steps=5),
    "slow": demo.Recipe(0.5, SMF, steps=5),
}
NUM_NEW, NUM_KNOWN = 12, 24  # three and six people, four relations
ROW = {
    "taught": dict,
    "held_out": dict,
    "known": dict,
    "known_before": float,
    "forgetting": dict | None,  # nothing, if nothing was known
    "forgotten_at_equal": float,
    "text_loss": None,  # the synthetic world has no texts
    "learning_rate": float,
    "batch_size": int,
    "steps": int,
    "trainable": int,
    "curve": list,
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


def run_demo(out, steps: int = 60, recipes=RECIPES) -> tuple[dict, str]:
    """Returns the summary on disk and the printed text."""
    config = demo.DemoConfig(out=str(out))
    console = Console(file=io.StringIO(), width=80, soft_wrap=True)
    demo.compare(config, pretrain_config(out / "base", steps), recipes, console)
    return json.loads((out / "summary.json").read_text()), console.file.getvalue()


@pytest.fixture(scope="module")
def first(out):
    """Returns the summary and text of the first run."""
    return run_demo(out)


def test_the_summary_has_a_row_for_each_method_and_counts_the_questions(first, out):
    summary, _ = first

    assert list(summary["methods"]) == list(RECIPES)
    assert isinstance(summary["seconds"], float)
    assert summary["command"] == f"smf demo --out {shlex.quote(str(out))}"
    assert summary["data"][0].startswith(f"the synthetic world: {NUM_KNOWN} facts")
    for row in summary["methods"].values():
        counts = [row[group]["n"] for group in ("taught", "held_out", "known")]
        assert counts == [NUM_NEW, NUM_NEW, NUM_KNOWN]
        for name, kind in ROW.items():
            assert kind is row[name] or isinstance(row[name], kind), name
        assert row.keys() == ROW.keys()


def test_a_curve_leads_from_no_step_to_the_last(first):
    for row in first[0]["methods"].values():
        assert [step for step, *_ in row["curve"]] == [0, 1, 2, 3, 4, 5]
        assert row["curve"][0][3] == row["known_before"]
        groups = ("taught", "held_out", "known")
        assert row["curve"][-1][1:] == [row[g]["exact_match"] for g in groups]


def test_the_table_fits_80_columns_and_says_n(first):
    lines = first[1].splitlines()
    (header,) = (line for line in lines if line.split()[:1] == ["method"])

    columns = "method taught wording known forgotten equal"
    assert header.split() == columns.split()
    table = lines[lines.index(header) - 1 : -1]  # the last is a sentence
    assert table[0].split() == ["held-out", "at"]
    assert max(map(len, table)) <= 80
    counts = f"taught {NUM_NEW}, held-out wording {NUM_NEW}, known {NUM_KNOWN}"
    assert any(line.startswith(f"facts asked: {counts}") for line in table)
    assert lines[-1] == demo.WORLD_RATES


def test_fewer_facts_than_a_batch_are_one_batch(first, out):
    assert RECIPES["fast"].batch_size > NUM_NEW
    assert f"batch_size={RECIPES['fast'].batch_size} exceeds the {NUM_NEW}" in first[1]
    assert first[0]["methods"]["fast"]["batch_size"] == NUM_NEW


def test_an_interrupted_demo_continues_and_does_nothing_twice(first, out):
    summary, printed = first
    (out / "summary.json").unlink()
    shutil.rmtree(out / "slow")  # it was interrupted before this method
    checkpoint = out / "fast" / "checkpoints" / "5" / "manifest.json"
    written = checkpoint.stat().st_mtime_ns

    again, printed_again = run_demo(out)

    assert again["methods"] == summary["methods"]
    assert checkpoint.stat().st_mtime_ns == written
    assert "already pretrained" not in printed
    assert "already pretrained" in printed_again
    assert "finetune slow" in printed_again
    assert "finetune fast" not in printed_again


def test_a_demo_of_other_settings_is_left_as_it_was(first, out):
    want = (out / "summary.json").read_text()

    with pytest.raises(ConfigError, match="other settings or files"):
        run_demo(out, steps=61)

    assert (out / "summary.json").read_text() == want
    assert (out / "base" / "checkpoints" / "60").is_dir()


def test_a_report_is_drawn_from_the_files(first, out):
    page = report.write(out).read_text()

    assert "<svg" in page
    for name in RECIPES:
        assert f"<h3>{name}</h3>" in page


def test_a_run_that_the_demo_did_not_write_is_not_removed(first, out):
    shutil.copytree(out / "base", out / "other")

    with pytest.raises(ConfigError, match="this demo did not write"):
        run_demo(out, recipes={"other": RECIPES["fast"]})

    assert (out / "other" / "checkpoints" / "60").is_dir()


@pytest.mark.parametrize("name", ["smf", "lora", "full"])
def test_every_recipe_fits_its_base(name):
    for recipes, facts in ((demo.WORLD_RECIPES, None), (demo.FILE_RECIPES, "f")):
        memory = demo.base_config(demo.DemoConfig(facts=facts)).model.memory
        config = demo.finetune_config(recipes[name], "base", "run")

        assert config.optim.top_t <= memory.num_slots
