"""Proof on the user's own machine: a run that is killed goes on with the same bits."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from smf_jax import checkpoint
from smf_jax.config import (
    DataConfig,
    MemoryConfig,
    ModelConfig,
    PretrainConfig,
    SaveConfig,
    WorldConfig,
    require,
)
from smf_jax.train.loop import read_rows
from smf_jax.train.record import METRICS

STEPS, EVERY = 60, 10
LONGEST = 300  # seconds a run may take, the start of the program included
SAVE_SECONDS = 0.06  # about what a save takes here: kills fall somewhere in it


def kill(rounds: int, seed: int, console: Console) -> bool:
    """Kills a small run in `rounds` ways, resumes it, and compares bits.

    Returns:
      Whether every resumed run ended like the one that was never killed.

    Raises:
      ConfigError: The run does not even train when it is left alone.
    """
    chance = random.Random(seed)
    table = Table("round", "killed", "gone on from", "parameters, optimizer, metrics")
    lost = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        config = folder / "config.py"
        config.write_text(_CONFIG.format(config=_config()))
        console.print("a run that is left alone ...")
        output = _finish(config, folder / "alone")
        require(output is None, f"the run does not end when it is left alone: {output}")
        want = _outcome(folder / "alone")
        for number in range(1, rounds + 1):
            run_dir = folder / str(number)
            if number % 2:
                step = chance.randrange(1, STEPS)
                what, when = f"after step {step}", _after_step(run_dir, step)
            else:
                step = EVERY * chance.randrange(1, STEPS // EVERY + 1)
                wait = chance.uniform(0, SAVE_SECONDS)
                what = f"{1000 * wait:.0f} ms into the save of step {step}"
                when = _in_save(run_dir, step, wait)
            console.print(f"round {number} of {rounds}: killed {what} ...")
            _kill_when(when, config, run_dir)
            start = checkpoint.latest_step(run_dir)
            failed = None
            if start != STEPS:  # else the kill came after the last save
                failed = _finish(config, run_dir)
            same = failed is None and _outcome(run_dir) == want
            lost += not same
            table.add_row(
                str(number),
                what,
                "the start" if start is None else f"step {start}",
                "same bits" if same else failed or "DIFFERENT",
            )
    console.print(table)
    console.print(f"killed {rounds} times, lost {lost}", highlight=False)
    return lost == 0


_CONFIG = """\
from smf_jax.config import *

def config():
    return {config!r}
"""


def _config() -> PretrainConfig:
    memory = MemoryConfig(
        layers=(1,), num_keys=16, top_k=4, num_heads=2, key_dim=16, value_dim=32
    )
    return PretrainConfig(
        run_dir="unused",
        steps=STEPS,
        log_every=1,
        save=SaveConfig(every=EVERY),
        model=ModelConfig(dim=32, num_layers=2, hidden_dim=64, memory=memory),
        data=DataConfig(
            batch_size=4, world=WorldConfig(known_people=40, new_people=10)
        ),
    )


def _start(config: Path, run_dir: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "smf_jax", "pretrain", str(config)]
    return subprocess.Popen(
        [*command, "--run-dir", str(run_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(config: Path, run_dir: Path) -> str | None:
    """Runs the command to its end; returns how it failed, or None."""
    process = _start(config, run_dir)
    try:
        output, _ = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"no end after {LONGEST} s"
    if process.returncode != 0:
        return f"ended with code {process.returncode}: {output.strip()[-500:]}"
    return None


def _kill_when(when: Callable[[], bool], config: Path, run_dir: Path) -> None:
    process = _start(config, run_dir)
    deadline = time.monotonic() + LONGEST
    while not when() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def _after_step(run_dir: Path, step: int) -> Callable[[], bool]:
    path = run_dir / METRICS
    return lambda: path.exists() and path.read_bytes().count(b"\n") >= step


def _in_save(run_dir: Path, step: int, wait: float) -> Callable[[], bool]:
    begun = run_dir / "checkpoints" / f"{step}.saving"

    def when() -> bool:
        if not begun.exists():
            return False
        time.sleep(wait)
        return True

    return when


def _outcome(run_dir: Path) -> dict[str, Any]:
    """Returns what must be the same: contents of arrays, data position, metrics."""
    manifest = checkpoint.read(run_dir, STEPS)
    rows = read_rows(run_dir / METRICS)
    for row in rows:
        del row["seconds"], row["tokens_per_second"]
    return {
        "arrays": manifest.arrays,
        "progress": manifest.progress,
        "damaged": checkpoint.problems(run_dir, STEPS),
        "metrics": [json.dumps(row) for row in rows],
    }
