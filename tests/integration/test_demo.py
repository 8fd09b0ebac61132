"""The demo's walk on a base of few numbers: what it writes, and what it does again."""

import dataclasses
import io
import json
import shutil

import pytest
from rich.console import Console

from smf_jax import demo, report
from smf_jax.config import ConfigError, OptimConfig
from tests.tiny import pretrain_config

SMF = OptimConfig(method="smf", optimizer="sgd", top_t=3)
RECIPES = {
    "smf": demo.Recipe((5.0, 1.0), SMF, steps=6),
    "lora": demo.Recipe((0.003,), OptimConfig(method="lora"), steps=6),
}
NUM_NEW = 12  # three people, four relations
ROW = {
    "learned": float,
    "learned_held_out_wording": float,
    "before": float,
    "after": float,
    "forgotten": float,
    "steps": int,
    "trainable": int,
    "curve": list,
}


class Walk:
    """One folder, walked through as often as asked."""

    def __init__(self, out):
        self.config = demo.DemoConfig(out=str(out), sweep=True)
        self.base = pretrain_config(out / "base", steps=20)
        self.out = out

    def run(self) -> tuple[dict, str]:
        """Returns the summary on disk and what was printed."""
        with io.StringIO() as text:
            console = Console(file=text, width=200)
            demo.run(self.config, self.base, RECIPES, console)
            printed = text.getvalue()
        return json.loads((self.out / "summary.json").read_text()), printed


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    return Walk(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def first(walk):
    return walk.run()


def test_the_summary_has_a_row_for_each_method(first):
    summary, _ = first

    assert list(summary["methods"]) == ["smf", "lora"]
    assert isinstance(summary["seconds"], float)
    for row in summary["methods"].values():
        assert {name: type(row[name]) for name in ROW} == ROW


def test_a_curve_leads_from_no_step_to_the_last(first):
    summary, _ = first

    for row in summary["methods"].values():
        assert [step for step, *_ in row["curve"]] == [0, 1, 2, 3, 4, 5, 6]
        assert row["curve"][0][3] == row["before"]
        last = [row["learned"], row["learned_held_out_wording"], row["after"]]
        assert row["curve"][-1][1:] == last


def test_a_sweep_teaches_at_every_rate(first, walk):
    rows = json.loads((walk.out / "sweep.json").read_text())

    rates = [(row["method"], row["learning_rate"]) for row in rows]
    assert rates == [("smf", 5.0), ("smf", 1.0), ("lora", 0.003)]


def test_a_file_with_fewer_facts_than_a_batch_is_one_batch(first, walk):
    record = json.loads((walk.out / "smf" / "config.json").read_text())

    assert record["finetune"]["batch_size"] == NUM_NEW < RECIPES["smf"].batch_size


def test_a_report_is_drawn_from_what_was_written(first, walk):
    page = report.write(walk.out).read_text()

    assert "<svg" in page
    for name in RECIPES:
        assert f"<h3>{name}</h3>" in page


def test_an_interrupted_demo_goes_on_and_does_nothing_twice(first, walk):
    summary, _ = first
    for name in ("summary.json", "sweep.json", "report.html"):
        (walk.out / name).unlink(missing_ok=True)
    shutil.rmtree(walk.out / "lora")  # it was stopped before this method
    done = walk.out / "smf" / "checkpoints" / "6" / "manifest.json"
    written = done.stat().st_mtime_ns

    again, printed = walk.run()

    assert again["methods"] == summary["methods"]
    assert done.stat().st_mtime_ns == written
    assert "finetune lora" in printed
    assert "finetune smf" not in printed


def test_a_second_run_takes_the_base_from_the_first_and_ends_alike(first, walk):
    summary, printed = first

    again, printed_again = walk.run()

    assert "trained before" not in printed
    assert "trained before" in printed_again
    assert again["methods"] == summary["methods"]


def test_a_demo_of_other_settings_is_left_as_it_was(first, walk):
    other = Walk(walk.out)
    other.base = dataclasses.replace(other.base, steps=21)
    want = (walk.out / "summary.json").read_text()

    with pytest.raises(ConfigError, match="other settings or files"):
        other.run()

    assert (walk.out / "summary.json").read_text() == want
    assert (walk.out / "base" / "checkpoints" / "20").is_dir()


def test_a_run_that_another_made_is_not_removed(first, walk, tmp_path):
    shutil.copytree(walk.out / "base", tmp_path / "smf")

    with pytest.raises(ConfigError, match="this demo did not make"):
        Walk(tmp_path).run()

    assert (tmp_path / "smf" / "checkpoints").is_dir()


@pytest.mark.parametrize("name", ["smf", "lora", "full"])
def test_every_recipe_is_a_run_of_its_base(name):
    for recipes, facts in ((demo.WORLD_RECIPES, None), (demo.FILE_RECIPES, "f")):
        memory = demo.base_config(demo.DemoConfig(facts=facts)).model.memory
        config = demo.finetune_config(recipes[name], "base", "run")

        assert config.optim.top_t <= memory.num_slots
        assert len(recipes[name].learning_rates) >= 3
