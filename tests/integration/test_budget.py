"""A budget of what may be forgotten: teaching goes back to where it was kept."""

import dataclasses

import pytest

from smf_jax import checkpoint
from smf_jax.config import ConfigError, KeepConfig, SaveConfig
from smf_jax.data.prompts import Prompt
from smf_jax.evaluate.perplexity import TextLoss
from smf_jax.evaluate.questions import NO_QUESTIONS, Evaluation
from smf_jax.runs.load import load_run
from smf_jax.verbs import finetune as verb
from smf_jax.verbs.budget import Broken, describe_budget, over_budget, tell_budget
from tests import tiny
from tests.integration.files import TIMES, interrupt, read_json, rows

QUESTIONS = NO_QUESTIONS._replace(
    known=[Prompt(str(n), f"{n} ?", ("yes",)) for n in range(10)]
)
LIMITS = KeepConfig(forget_at_most=0.2, text_loss_at_most=0.25)


def found(right: int, loss: float, step: int = 4) -> Evaluation:
    """Returns an evaluation with so many right answers of ten."""
    answers = ["yes"] * right + ["no"] * (10 - right)
    texts = TextLoss(1, loss, None, [loss], [1.0])
    return Evaluation(step, {}, {"known": answers}, texts)


# --- what is over ---


@pytest.mark.parametrize(
    ("right", "loss", "want"),
    [
        (8, 2.25, None),  # both just within
        (7, 2.0, Broken(4, 0.3, 0.0)),
        (10, 2.5, Broken(4, 0.0, 0.5)),
    ],
)
def test_too_many_facts_or_too_much_loss_break_a_budget(right, loss, want):
    got = over_budget(LIMITS, QUESTIONS, found(10, 2.0, 0), found(right, loss))

    assert (got is None) == (want is None)
    if want is not None:
        assert got == pytest.approx(want)


def test_without_a_budget_nothing_is_over():
    config = dataclasses.replace(LIMITS, forget_at_most=None)

    assert over_budget(config, QUESTIONS, found(10, 2.0), found(0, 9.0)) is None
    assert describe_budget(config, [], 4) is None


def test_a_budget_counts_where_there_are_no_texts_or_nothing_was_known():
    first, now = (found(10, 2.0)._replace(texts=None) for _ in range(2))
    assert over_budget(LIMITS, QUESTIONS, first, now) is None

    unknown = over_budget(LIMITS, QUESTIONS, found(0, 2.0), found(0, 2.5))
    assert unknown == (4, None, 0.5)


def test_what_became_of_a_budget_is_told_in_words():
    def tell(step, *broken):
        return tell_budget(describe_budget(LIMITS, broken, step))

    limits = "The budget (20.0% forgotten, text loss +0.250 nats)"
    assert tell(8) == f"{limits} was kept at the full rate."
    first = Broken(4, 0.3, 0.01)
    story = (
        f"{limits} was broken: after step 4 30.0% were forgotten and text loss rose by "
        "0.0100; taught on at half the rate"
    )
    assert tell(8, first) == f"{story}, within the budget."
    again = "and again after step 6 text loss rose by 0.2000"
    second = Broken(6, None, 0.2)
    assert tell(2, first, second) == f"{story}, {again}: the result is step 2."
    untaught = "the result is the untaught model."
    assert tell(0, first, second) == f"{story}, {again}: {untaught}"


def test_a_budget_needs_evaluations():
    with pytest.raises(ConfigError, match="needs evaluations"):
        tiny.finetune_config("b", "r", keep=LIMITS, eval_every=0)


# --- going back ---


def config_of(base, run_dir, **changes):
    """Returns a run of eight steps that is evaluated at every second one."""
    save = SaveConfig(every=3, keep=9)
    settings = {"steps": 8, "eval_every": 2, "save": save, "keep": LIMITS}
    settings |= {"teach": "statements", "log_every": 1}
    return tiny.finetune_config(base, run_dir, **settings | changes)


@pytest.fixture
def breaks(monkeypatch):
    """Returns a function that makes a run break its budget where it is told."""

    def at(*where: tuple[int, int]) -> None:
        """Takes pairs of a step, and how often the budget was broken before."""
        asked = {"broken": 0}

        def judge(config, questions, first, now):
            if (now.step, asked["broken"]) not in where:
                return None
            asked["broken"] += 1
            return Broken(now.step, 0.75, None)

        monkeypatch.setattr(verb, "over_budget", judge)

    return at


def logged(run_dir):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows(run_dir)]


@pytest.fixture(scope="module")
def free(commands, base):
    """Returns a run whose budget is never broken."""
    run_dir = commands.folder / "free"
    keep = KeepConfig(forget_at_most=0.99, text_loss_at_most=99.0)
    config = config_of(base, run_dir, keep=keep)
    assert commands.run_config("free", config) == 0
    return run_dir


def test_a_run_within_its_budget_is_saved_where_it_is_evaluated(free):
    assert checkpoint.steps(free) == [0, 2, 4, 6, 8]
    teaching = read_json(free / "teaching.json")
    assert teaching["budget"]["broken"] == []
    assert teaching["budget"]["step"] == 8


def test_a_run_over_its_budget_goes_back_once_and_on_at_half_the_rate(
    base, free, breaks, run, tmp_path
):
    breaks((4, 0))

    code, printed = run(config_of(base, tmp_path / "run"))

    assert code == 0
    assert "after step 4 75.0% were forgotten; taught on at half the rate" in printed
    teaching = read_json(tmp_path / "run" / "teaching.json")
    assert [point[0] for point in teaching["curve"]] == [0, 2, 4, 6, 8]
    assert [each["step"] for each in teaching["budget"]["broken"]] == [4]
    got, want = logged(tmp_path / "run"), logged(free)
    assert [row["step"] for row in got] == [*range(1, 9)]
    # The third step starts from the same state; what it did shows in the fourth.
    assert got[:3] == want[:3]
    assert got[3]["loss"] != want[3]["loss"]


def test_a_run_twice_over_its_budget_ends_with_the_last_state_within_it(
    base, free, breaks, run, tmp_path
):
    breaks((4, 0), (8, 1))

    code, printed = run(config_of(base, tmp_path / "run"))

    assert code == 0
    assert "the result is step 6." in printed
    run_dir = tmp_path / "run"
    assert load_run(run_dir).model_hash == load_run(run_dir, 6).model_hash
    assert load_run(run_dir).step == 8
    assert read_json(run_dir / "evaluation.json")["step"] == 6
    assert [row["step"] for row in rows(run_dir)] == [*range(1, 7)]
    assert run("verify", run_dir)[0] == 0
    again, told = run(config_of(base, run_dir))
    assert again == 0
    assert f"{run_dir} is finished" in told


def test_a_model_that_is_never_within_its_budget_stays_as_it_was(
    base, breaks, run, tmp_path
):
    breaks((2, 0), (2, 1))

    code, printed = run(config_of(base, tmp_path / "run"))

    assert code == 0
    assert "the result is the untaught model." in printed
    assert load_run(tmp_path / "run").model_hash == load_run(base).model_hash
    teaching = read_json(tmp_path / "run" / "teaching.json")
    assert [point[0] for point in teaching["curve"]] == [0]


@pytest.mark.parametrize("killed_in", [4, 6, 8])
def test_a_run_with_a_budget_resumes_to_the_same_bits(
    base, breaks, run, tmp_path, killed_in
):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    breaks((6, 0))
    assert run(config_of(base, whole))[0] == 0
    breaks((6, 0))
    assert run(config_of(base, resumed))[0] == 0
    while checkpoint.latest_step(resumed) >= killed_in:
        interrupt(resumed)
    breaks((6, 0))

    code, printed = run(config_of(base, resumed))

    assert code == 0
    assert f"from step {killed_in - 2} of 8" in printed
    got, want = (checkpoint.read(folder, 8) for folder in (resumed, whole))
    assert (got.arrays, got.progress) == (want.arrays, want.progress)
    assert logged(resumed) == logged(whole)


def test_a_signal_leaves_only_what_was_evaluated(base, run, tmp_path, monkeypatch):
    from smf_jax.train import fit

    @fit.contextlib.contextmanager
    def stop_at_five():
        yield lambda step: step == 5

    monkeypatch.setattr(fit, "stop_on_signal", stop_at_five)
    code, printed = run(config_of(base, tmp_path / "run"))

    assert code == 75
    assert "after step 5 of 8, and saved at its last evaluation" in printed
    assert checkpoint.steps(tmp_path / "run") == [0, 2, 4]
