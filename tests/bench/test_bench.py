"""A tiny benchmark: what is timed, printed and written."""

import io
import json
import time

import pytest
from rich.console import Console

from smf_jax import cli
from smf_jax.bench import lookup, run, timing
from smf_jax.bench.config import BenchConfig
from smf_jax.bench.timing import Case
from smf_jax.config import ConfigError
from tests import tiny

MEMORY = tiny.memory_config(layers=(0,), num_keys=32, value_dim=16)
MODEL = tiny.model_config(memory=MEMORY, num_layers=1)
SIZES = {"texts": 3, "grad_accum_steps": 3, "seq_len": 5, "top_t": 4}
CONFIG = BenchConfig(repeats=2, model=MODEL, **SIZES)


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    monkeypatch.setattr(timing, "MIN_SECONDS", 0)
    monkeypatch.setattr(timing, "PAUSE", 0)


def test_cases_are_timed_in_turn_and_the_first_calls_are_not_counted():
    order = []
    cases = {name: Case(lambda name=name: order.append(name)) for name in "ab"}

    times = timing.time_in_turn(cases, 3)

    assert "".join(order) == "aabb" + "ab" * 3
    assert all(of["min"] <= of["median"] <= of["max"] for of in times.values())
    assert all(len(of["samples"]) == 3 for of in times.values())


def test_a_short_call_is_repeated_in_a_sample_and_timed_as_one(monkeypatch):
    monkeypatch.setattr(timing, "MIN_SECONDS", 0.1)
    calls = []
    case = Case(lambda: calls.append(time.sleep(0.01)))

    (times,) = timing.time_in_turn({"a": case}, 2).values()

    assert len(calls) > 2 + 2 * 2
    assert 0.01 <= times["median"] < 0.1


def test_inputs_read_slots_of_the_table_and_select_some_of_them():
    inputs = lookup.draw_inputs(CONFIG)

    assert inputs.slots.max() < MEMORY.num_slots
    assert set(inputs.selected) <= set(inputs.slots.ravel())
    assert len(inputs.selected) == CONFIG.top_t
    assert inputs.read_bytes == 15 * 6 * 16 * 4


def test_every_part_is_timed_printed_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "TORCH", ("no_such_module",))
    monkeypatch.setattr(run, "TABLE_KEYS", (16,))
    config = BenchConfig(out=str(tmp_path), repeats=1, model=MODEL, **SIZES)
    console = Console(file=io.StringIO(), width=80)

    run.run(config, console)

    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for words in (
        "timing smf_jax alone",
        "ratio: time per byte, relative to the first row",
        "ratio: time per token, relative to the first row",
        "full, rounded factors",
        "cost of memory layers, smf, cached:",
        "256 slots",
    ):
        assert words in text
    written = json.loads((tmp_path / "bench.json").read_text())
    assert set(config.parts) < set(written)
    cases = {}
    for group in written["methods"]["groups"]:
        cases |= group
    sizes = {name: case["sizes"] for name, case in cases.items()}
    assert all(of["peak"] >= of["arguments"] > 0 for of in sizes.values())
    trainable = {name: of["trainable"] for name, of in sizes.items()}
    assert trainable["smf"] == 4 * 16 < trainable["lora"] < trainable["full"]


def test_a_bench_of_nothing_or_of_unequal_parts_is_refused():
    with pytest.raises(ConfigError, match="repeats"):
        BenchConfig(repeats=0)
    with pytest.raises(ConfigError, match="--texts=4 is not a multiple of grad_accum"):
        BenchConfig(texts=4, grad_accum_steps=3)
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "--texts", "0"])
    assert caught.value.code == 2


def test_kernels_that_a_device_lacks_are_refused(tmp_path, capsys):
    out = tmp_path / "bench"

    code = cli.main(["bench", "--out", str(out), "--compute.lookup", "pallas"])

    assert code == 2
    assert "compute.lookup=pallas" in capsys.readouterr().err
    assert not out.exists()
