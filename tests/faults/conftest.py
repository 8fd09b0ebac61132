"""Runs that tests hurt on purpose, and what must come of them."""

import dataclasses
import functools
import json
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from smf_jax.config import (
    FinetuneConfig,
    MeshConfig,
    OptimConfig,
    PretrainConfig,
    RetrofitConfig,
    SaveConfig,
)
from tests import tiny
from tests.bases import make_once, shared_folder
from tests.faults.children import (
    Ended,
    Runner,
    Starter,
    build_fault_library,
    write_config,
)

EACH = os.environ.get("SMF_HURT_EACH") == "1"  # each file operation, not one of a kind
MISSED = 8  # seconds of silence after which one of several processes is missed
SAVED = (
    75  # the exit code of a run that was told to stop, see docs/reference/exit_codes.md
)
STEPS, SAVE_EVERY, EVAL_EVERY = 9, 3, 4  # step 9 is both saved and evaluated
METHODS = {
    "smf": OptimConfig(method="smf", learning_rate=0.05, top_t=3),  # AdamW on rows
    "lora": OptimConfig(method="lora", learning_rate=0.003),
    "full": OptimConfig(method="full", optimizer="muon", learning_rate=0.001),
}


class Job(NamedTuple):
    """A run to hurt, and the same run unhurt."""

    config: PretrainConfig | RetrofitConfig | FinetuneConfig
    reference: Path

    def command(self, run_dir: Path, *more: str) -> list[str]:
        file = self.reference.with_suffix(".py")
        return [self.config.verb, str(file), "--run-dir", str(run_dir), *more]


def pretrain_config(run_dir: Path) -> PretrainConfig:
    """Returns a run of one layer, as these runs are started many times."""
    config = tiny.pretrain_config(run_dir, STEPS)
    memory = dataclasses.replace(config.model.memory, layers=(0,))
    model = dataclasses.replace(config.model, memory=memory, num_layers=1)
    save = SaveConfig(every=SAVE_EVERY)
    return dataclasses.replace(config, model=model, save=save, log_every=2)


def small_config(run_dir: Path) -> PretrainConfig:
    """Returns the same run without a memory: a third less work, the same files."""
    config = pretrain_config(run_dir)
    model = dataclasses.replace(config.model, memory=None)
    return dataclasses.replace(config, model=model)


def retrofit_config(base: Path, run_dir: Path) -> RetrofitConfig:
    config = pretrain_config(run_dir)
    memory = dataclasses.replace(config.model.memory, placement="add")
    schedule = {"steps": STEPS, "eval_every": EVAL_EVERY, "save": config.save}
    return tiny.retrofit_config(base, run_dir, memory=memory, **schedule)


def finetune_config(optim: OptimConfig, base: Path, run_dir: Path) -> FinetuneConfig:
    save = SaveConfig(every=SAVE_EVERY, keep=1, best="known")
    schedule = {"steps": STEPS, "eval_every": EVAL_EVERY, "save": save}
    return tiny.finetune_config(base, run_dir, optim, teach="statements", **schedule)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """Returns a folder of this room that all workers share."""
    folder = shared_folder(tmp_path_factory) / "faults"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def runner(shared):
    if shutil.which("cc") is None and not os.environ.get("SMF_REQUIRE_CC"):
        pytest.skip("there is no C compiler for the library that hurts processes")
    library = make_once(shared / "fault.so", build_fault_library)
    runner = Runner(library, shared / "cache")
    yield runner
    runner.stop()


@pytest.fixture(scope="session")
def jobs(runner, shared):
    """Returns a function from the name of a job to the job, its reference finished."""

    def finish(name: str, make_config, *more) -> Job:
        run_dir = shared / name
        job = Job(make_config(*more, run_dir), run_dir)

        def make(run_dir: Path) -> None:
            write_config(run_dir.with_suffix(".py"), job.config)
            must_end_well(runner(*job.command(run_dir)))
            if name == "pretrain":
                must_end_well(runner("usage", run_dir, "--documents", "10"))

        make_once(run_dir, make)
        return job

    @functools.cache
    def job(name: str) -> Job:
        match name:
            case "pretrain":
                return finish(name, pretrain_config)
            case "small":
                return finish(name, small_config)
            case "retrofit":
                return finish(name, retrofit_config, job("small").reference)
        return finish(name, finetune_config, METHODS[name], job("pretrain").reference)

    return job


@pytest.fixture(scope="session")
def interrupted(runner, jobs, shared):
    """Returns the small run with its checkpoint of step 6, and three steps to go."""

    def make(run_dir: Path) -> None:
        ended = runner(*jobs("small").command(run_dir), signals=[(6, signal.SIGTERM)])
        assert ended.code == SAVED, ended.output

    return make_once(shared / "interrupted", make)


@pytest.fixture(scope="session")
def starter():
    starter = Starter()
    yield starter
    starter.stop()


@pytest.fixture(scope="session")
def together(starter, shared, tmp_path_factory):
    """Returns a function that runs a command in several processes.

    It returns for each its exit code, the seconds it ended after one was hurt, or else
    after the first ended, and its output. A process that is stopped does not end.
    """
    folder = tmp_path_factory.mktemp("together")

    def run(
        argv,
        count=2,
        signals=None,
        more=None,
        *,
        program="one_of_many",
        absent=(),
        **environment,
    ):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        signals, started, ended = signals or {}, {}, {}
        for number in {*range(count)} - {*absent}:
            variables = {
                "SMF_COORDINATOR": f"127.0.0.1:{port}",
                "SMF_NUM_PROCESSES": str(count),
                "SMF_PROCESS_ID": str(number),
                "SMF_PEER_TIMEOUT": str(MISSED),
            } | environment
            command = [str(shared / "cache"), json.dumps(signals.get(number, []))]
            command += [*map(str, argv), *(more or {}).get(number, [])]
            output = folder / f"output-{number}"
            started[starter.start(program, command, variables, output)] = number

        def wait(until: set[int]) -> None:
            deadline = time.monotonic() + 120
            while until - ended.keys() and time.monotonic() < deadline:
                for process, code in starter.ended().items():
                    ended[started[process]] = (code, time.monotonic())
                time.sleep(0.05)

        stopped = {n for n, of in signals.items() if of[0][1] == signal.SIGSTOP}
        awaited = {*started.values()} - stopped
        try:
            wait(awaited)
        finally:
            in_time = {number: when for number, (_, when) in ended.items()}
            for process, number in started.items():
                if number not in ended:
                    os.kill(process, signal.SIGKILL)
            wait({*started.values()})
        assert awaited == in_time.keys(), "a process hangs"
        time.sleep(0.5)  # for output that is written after the end
        outputs = {n: (folder / f"output-{n}").read_text() for n in started.values()}
        hurt = re.findall(r"hurt at (\d+\.\d+)", "".join(outputs.values()))
        since = min([float(when) for when in hurt] or in_time.values())
        return {
            number: (code, in_time.get(number, since) - since, outputs[number])
            for number, (code, _) in sorted(ended.items())
        }

    return run


@pytest.fixture(scope="session")
def command(tmp_path_factory):
    """Returns a function from a run directory to the command that trains there."""
    config = pretrain_config("unused")
    config = dataclasses.replace(
        config,
        steps=30,
        log_every=50,
        data=dataclasses.replace(config.data, batch_size=4),  # for two or four
        save=SaveConfig(every=10),
        mesh=MeshConfig(),
    )
    path = write_config(tmp_path_factory.mktemp("config") / "config.py", config)
    return lambda run_dir: ["pretrain", path, "--run-dir", run_dir]


def must_end_well(ended: Ended) -> Ended:
    assert ended.code == 0, ended.output
    return ended


def outcome(run_dir: Path) -> dict:
    """Returns all that a run leaves behind, but for times, paths and its usage."""

    def read(name):
        path = run_dir / name
        return json.loads(path.read_text()) if path.exists() else None

    times = ("seconds", "tokens_per_second")
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    checkpoints = run_dir / "checkpoints"
    steps = sorted(path.name for path in checkpoints.iterdir())
    manifests = {
        step: json.loads((checkpoints / step / "manifest.json").read_text())["manifest"]
        for step in steps
    }
    files = {path.name for path in run_dir.iterdir()} - {"usage.safetensors"}
    names = ("evaluation", "teaching", "retrofit", "tokenizer")
    return {
        "files": sorted(files),
        "metrics": [{n: v for n, v in row.items() if n not in times} for row in rows],
        "arrays": {step: m["arrays"] for step, m in manifests.items()},
        "progress": {step: m["progress"] for step, m in manifests.items()},
    } | {name: read(f"{name}.json") for name in names}
