"""A bench of few numbers: works that are the same on both sides, and a file of them."""

import io
import json
import time

import jax
import numpy as np
import pytest
from rich.console import Console

from smf_jax import cli
from smf_jax.bench import lookup, report, run, steps, timing
from smf_jax.bench.config import BenchConfig
from smf_jax.config import ConfigError
from tests import tiny

MEMORY = tiny.memory_config(layers=(0,), num_keys=32, value_dim=16)
CONFIG = BenchConfig(
    repeats=2,
    texts=3,
    grad_accum_steps=3,
    seq_len=5,
    top_t=4,
    rank=2,
    most_keys=256,
    model=tiny.model_config(memory=MEMORY, num_layers=1),
)


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    monkeypatch.setattr(timing, "SHORTEST", 0)
    monkeypatch.setattr(timing, "REST", 0)


def test_works_take_turns_and_the_first_ones_are_not_counted():
    order = []
    works = {name: lambda name=name: order.append(name) for name in "ab"}

    times = timing.take_turns(works, 3)

    assert "".join(order) == "aabb" + "ab" * 3
    assert all(of.least <= of.median <= of.most for of in times.values())
    assert all(len(of.turns) == 3 for of in times.values())


def test_a_short_work_is_done_often_in_a_turn_and_its_time_is_that_of_once(monkeypatch):
    monkeypatch.setattr(timing, "SHORTEST", 0.1)
    calls = []

    def work():
        calls.append(time.sleep(0.01))

    (times,) = timing.take_turns({"a": work}, 2).values()

    assert len(calls) > 2 + 2 * 2
    assert 0.01 <= times.median < 0.1


def test_a_reading_is_of_slots_that_exist_and_chosen_rows_are_read():
    reading = lookup.draw(CONFIG)

    assert reading.slots.max() < MEMORY.num_slots
    assert set(reading.chosen) <= set(reading.slots.ravel())
    assert len(reading.chosen) == CONFIG.top_t
    assert reading.bytes_read == 15 * 6 * 16 * 4


@pytest.mark.parametrize("method", ["smf", "lora", "full"])
def test_a_step_says_what_it_may_change_and_what_it_holds(method):
    step = steps.stepping(CONFIG, CONFIG.model, method)
    step.work()
    step.work()  # the state that it was given is gone

    assert step.peak >= step.held > 0
    want = {"smf": 4 * 16, "full": None, "lora": None}[method]
    assert step.trainable == want or want is None


def test_the_dense_part_of_a_model_reads_next_to_nothing():
    memory = steps.dense_part(CONFIG.model).memory

    assert (memory.num_heads, memory.top_k, memory.value_dim) == (1, 1, 16)


def test_a_bench_is_written_printed_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "TORCH", ("no_such_module",))
    config = CONFIG.__class__(**vars(CONFIG) | {"out": str(tmp_path / "bench")})
    console = Console(file=io.StringIO(), width=120)

    results = run.run(config, console)
    report.show(config, results, console)
    path = report.draw(config, results)

    text = console.file.getvalue()
    assert "timed without it" in text
    for word in (
        "GB/s",
        "rows written in place",
        "slots ranked, smf_jax",
        "lora",
        "beyond its dense layers, smf, texts seen before:",
        "a feed-forward",
        "65,536",
        "decoding:",
    ):
        assert word in text
    assert path.stat().st_size > 0
    written = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert set(config.parts) < set(written)
    sizes = written["methods"]["sizes"]
    assert sizes["full"]["trainable"] > sizes["smf"]["trainable"]


def test_what_is_no_bench_is_refused(capsys):
    with pytest.raises(ConfigError, match="repeats"):
        BenchConfig(repeats=0)
    with pytest.raises(
        ConfigError, match="--texts=4 is no multiple of grad_accum_steps=3"
    ):
        BenchConfig(texts=4, grad_accum_steps=3)
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "--texts", "0"])
    assert caught.value.code == 2


def test_kernels_are_not_timed_where_there_are_none(tmp_path, capsys):
    out = tmp_path / "bench"

    code = cli.main(["bench", "--out", str(out), "--compute.lookup", "pallas"])

    assert code == 2
    assert "compute.lookup=pallas is for GPU and TPU" in capsys.readouterr().err
    assert not out.exists()


def test_queries_and_keys_fit_the_ranking():
    query, keys = lookup.draw_keys(CONFIG)

    (work,) = lookup.ranking(CONFIG).values()
    slots, scores = work()

    assert query.shape[-1] == keys.shape[-1] == MEMORY.key_dim // 2
    assert slots.shape == scores.shape == (3, 5, 2, 3)
    assert np.isfinite(scores).all()
    assert isinstance(slots, jax.Array)
