"""Processes that have imported everything once, and fork the runs that tests hurt."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.integration.commands import CONFIG_FILE

ROOT = Path(__file__).parents[2]
# For a program that a shell may have begun in the background, deaf to Ctrl-C.
HEED_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
SMF = f"{HEED_CTRL_C}\nfrom smf_jax.cli import run; run()"


class Ended(NamedTuple):
    """How a command ended."""

    code: int  # negative: the signal that ended it
    operations: list[str]  # "NAME PATH" of each that changed a file below its folder
    output: str


class Parent:
    """A process that forks the children it is told to."""

    def __init__(self, program: str, *argv: str, **environment: str):
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"tests.faults.{program}", *argv],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **task):
        """Sends a task, and returns the answer."""
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0


class Runner(Parent):
    """Runs commands, one at a time, in children that can be hurt."""

    def __init__(self, library: Path, cache: Path):
        super().__init__("worker", str(cache), LD_PRELOAD=str(library))

    def __call__(self, *argv, folder: Path | str = "", **faults) -> Ended:
        """Runs a command; worker.py describes `faults`."""
        argv = [str(argument) for argument in argv]
        return Ended(**self.ask(argv=argv, folder=str(folder), **faults))


class Starter(Parent):
    """Starts programs that run at the same time, and reports how they ended."""

    def __init__(self):
        super().__init__("starter")

    def start(self, program: str, argv: list[str], environment: dict, output) -> int:
        """Returns the process id."""
        task = {"environment": environment, "output": str(output)}
        return self.ask(program=program, argv=argv, **task)

    def ended(self) -> dict[int, int]:
        """Returns the exit codes of the processes that ended since the last call."""
        return {int(number): code for number, code in self.ask().items()}


def write_config(path: Path, config) -> Path:
    """Writes a configuration file."""
    path.write_text(CONFIG_FILE.format(config=config))
    return path


def build_fault_library(path: Path) -> None:
    """Compiles fault.c."""
    source = str(Path(__file__).with_name("fault.c"))
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
    subprocess.run(["cc", *flags, "-o", path, source, "-ldl"], check=True)
