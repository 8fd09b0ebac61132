"""Runs that are hurt on purpose, and what must come of them."""

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
from tests.faults.children import Ended, Runner, Starter
from tests.integration.commands import CONFIG_FILE

# Runs are hurt at every third file operation; SMF_HURT_EACH=1: at each of them.
BETWEEN = 1 if os.environ.get("SMF_HURT_EACH") == "1" else 3
MISSED = 8  # seconds of silence after which one of several processes is missed
STEPS, EVERY, ASKED = 9, 3, 4  # saved at 3, 6, 9; asked at 4, 8, 9: both, and neither
METHODS = {
    "smf": OptimConfig(method="smf", optimizer="sgd", learning_rate=5.0, top_t=3),
    "lora": OptimConfig(method="lora", learning_rate=0.003),
    "full": OptimConfig(method="full", optimizer="muon", learning_rate=0.001),
}
METHODS["momentum"] = dataclasses.replace(METHODS["smf"], momentum=0.9)


class Job(NamedTuple):
    """A run to hurt, and what it is when nothing hurts it."""

    verb: str
    config: Path
    reference: Path

    def command(self, run_dir: Path, *more: str) -> list[str]:
        return [self.verb, str(self.config), "--run-dir", str(run_dir), *more]


def pretrain_config(run_dir: Path) -> PretrainConfig:
    config = tiny.pretrain_config(run_dir, STEPS)
    memory = dataclasses.replace(config.model.memory, layers=(0,))
    # One layer: these runs are started hundreds of times.
    model = dataclasses.replace(config.model, memory=memory, num_layers=1)
    save = SaveConfig(every=EVERY)
    return dataclasses.replace(config, model=model, save=save, log_every=2)


def plain_config(run_dir: Path, **changes) -> PretrainConfig:
    config = pretrain_config(run_dir)
    model = dataclasses.replace(config.model, memory=None, **changes)
    return dataclasses.replace(config, model=model)


def small_config(run_dir: Path) -> PretrainConfig:
    """Returns a run of one layer: it is there to be started hundreds of times.

    A third of its time is saved by having no memory. Its files are those of any run.
    """
    return plain_config(run_dir, num_layers=1)


def retrofit_config(base: Path, run_dir: Path) -> RetrofitConfig:
    config = pretrain_config(run_dir)
    return RetrofitConfig(
        base=str(base),
        run_dir=str(run_dir),
        steps=STEPS,
        eval_every=ASKED,
        log_every=2,
        save=config.save,
        memory=dataclasses.replace(config.model.memory, placement="add"),
        data=config.data,
        optim=OptimConfig(method="memory", learning_rate=0.01),
    )


def finetune_config(optim: OptimConfig, base: Path, run_dir: Path) -> FinetuneConfig:
    return FinetuneConfig(
        base=str(base),
        run_dir=str(run_dir),
        teach="statements",
        steps=STEPS,
        batch_size=6,
        eval_every=ASKED,
        log_every=2,
        save=SaveConfig(every=EVERY, keep=1, best="known"),
        optim=optim,
    )


@pytest.fixture(scope="session")
def runner(tmp_path_factory):
    if shutil.which("cc") is None and not os.environ.get("SMF_REQUIRE_CC"):
        pytest.skip("file operations are failed by a C library, and there is no cc")
    runner = Runner(tmp_path_factory.mktemp("faults"))
    yield runner
    runner.stop()


@pytest.fixture(scope="session")
def jobs(runner):
    """Returns a function that returns a job by its name, once done without a fault."""

    def done(verb, name, make_config, *more) -> Job:
        run_dir = runner.folder / name
        job = Job(verb, runner.write(name, make_config(*more, run_dir)), run_dir)
        must_end_well(runner(*job.command(run_dir)))
        return job

    @functools.cache
    def job(name: str) -> Job:
        match name:
            case "pretrain":
                base = done("pretrain", name, pretrain_config)
                must_end_well(runner("usage", base.reference, "--documents", "10"))
                return base
            case "small":
                return done("pretrain", name, small_config)
            case "plain":
                return done("pretrain", name, plain_config)
            case "retrofit":
                return done("retrofit", name, retrofit_config, job("plain").reference)
        optim = METHODS[name]
        return done("finetune", name, finetune_config, optim, job("pretrain").reference)

    return job


@pytest.fixture(scope="session")
def starter():
    starter = Starter()
    yield starter
    starter.stop()


@pytest.fixture(scope="session")
def together(starter, tmp_path_factory):
    """Returns a function that runs a command in several processes.

    It returns for each how it ended, after how many seconds since one was hurt, or
    else since the first ended, and its output. One that is stopped does not end.
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
            command = [str(folder / "cache"), json.dumps(signals.get(number, []))]
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
        time.sleep(0.5)  # what is said of a process is said after its end
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
    path = tmp_path_factory.mktemp("config") / "config.py"
    config = tiny.pretrain_config("unused", 30)
    memory = dataclasses.replace(config.model.memory, layers=(0,))
    config = dataclasses.replace(
        config,
        # Each process traces and compiles it, so it has one layer.
        model=dataclasses.replace(config.model, num_layers=1, memory=memory),
        data=dataclasses.replace(config.data, batch_size=4),  # for two or four
        save=SaveConfig(every=10),
        mesh=MeshConfig(),
    )
    path.write_text(CONFIG_FILE.format(config=config))
    return lambda run_dir: ["pretrain", path, "--run-dir", run_dir]


def must_end_well(ended: Ended) -> Ended:
    assert ended.code == 0, ended.output
    return ended


def outcome(run_dir: Path) -> dict:
    """Returns all that a run leaves behind, but for times and paths."""

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
    return {
        "files": sorted(path.name for path in run_dir.iterdir()),
        "metrics": [{n: v for n, v in row.items() if n not in times} for row in rows],
        "arrays": {step: m["arrays"] for step, m in manifests.items()},
        "progress": {step: m["progress"] for step, m in manifests.items()},
        "evaluation": read("evaluation.json"),
        "teaching": read("teaching.json"),
        "retrofit": read("retrofit.json"),
        "tokenizer": read("tokenizer.json"),
    }
