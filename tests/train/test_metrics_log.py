"""What a training run prints."""

import io
import time

import jax.numpy as jnp
import pytest
from rich.console import Console

from smf_jax.runs.jsonl import read_rows
from smf_jax.train.metrics_log import metrics_log

METRICS = {"loss": jnp.ones(()), "tokens": jnp.array(6)}


def printed(tmp_path, title: str, is_terminal: bool) -> str:
    """Returns what a run of two steps prints."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, markup=False, width=120)
    path = tmp_path / "metrics.jsonl"
    with metrics_log(path, title, 0, 2, 1, console) as (log, _):
        log(1, METRICS)
        log(2, METRICS)
    return file.getvalue()


def test_a_pipe_is_told_of_compilation_once_before_the_steps(tmp_path):
    first, *steps = printed(tmp_path, "pretrain run", is_terminal=False).splitlines()

    assert first == "pretrain run: compiling the training step"
    assert [line.split("  ")[0] for line in steps] == [
        "pretrain run 1/2",
        "pretrain run 2/2",
    ]


def test_a_progress_bar_is_named_after_compilation_until_a_step_is_done(tmp_path):
    frames = printed(tmp_path, "pretrain run", is_terminal=True)

    compiling, training = (
        [frames.index(words), frames.rindex(words)]
        for words in ("compiling the training step", "pretrain run")
    )
    assert compiling[0] < training[0]
    assert compiling[1] < training[1]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_name_that_looks_like_markup_is_printed_as_it_is(tmp_path, is_terminal):
    assert "pretrain [/x]" in printed(tmp_path, "pretrain [/x]", is_terminal)


def test_a_pause_does_not_count_as_time_of_training(tmp_path):
    path, console = tmp_path / "metrics.jsonl", Console(file=io.StringIO())
    with metrics_log(path, "pretrain run", 0, 2, 1, console) as (log, pause):
        log(1, METRICS)
        time.sleep(0.2)
        pause(0.2)
        log(2, METRICS)

    first, second = read_rows(path)
    assert second["tokens_per_second"] > 6 / 0.2  # as if it had not paused
    assert second["seconds"] > first["seconds"] + 0.2
