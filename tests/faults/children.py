"""Processes that have imported everything once, and whose children are to be hurt."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.integration.commands import CONFIG_FILE

ROOT = Path(__file__).parents[2]


class Ended(NamedTuple):
    """How a command ended."""

    code: int  # negative: by that signal
    operations: int  # that changed a file below its folder; -1: it was killed
    output: str


class Parent:
    """A process that has imported everything, and forks what it is told to."""

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
        """Returns its answer to a line."""
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0


class Runner(Parent):
    """Runs commands, one after the other, in children that can be hurt."""

    def __init__(self, folder: Path):
        self.folder = folder
        library = folder / "fault.so"
        source = str(Path(__file__).with_name("fault.c"))
        flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
        subprocess.run(["cc", *flags, "-o", library, source, "-ldl"], check=True)
        super().__init__("worker", str(folder / "cache"), LD_PRELOAD=str(library))

    def __call__(self, *argv, folder: Path | str = "", **faults) -> Ended:
        argv = [str(argument) for argument in argv]
        return Ended(**self.ask(argv=argv, folder=str(folder), **faults))

    def write(self, name: str, config) -> Path:
        path = self.folder / f"{name}.py"
        path.write_text(CONFIG_FILE.format(config=config))
        return path


class Starter(Parent):
    """Starts programs that run beside each other, and knows how they ended."""

    def __init__(self):
        super().__init__("starter")

    def start(self, program: str, argv: list[str], environment: dict, output) -> int:
        """Returns the number of the process."""
        told = {"environment": environment, "output": str(output)}
        return self.ask(program=program, argv=argv, **told)

    def ended(self) -> dict[int, int]:
        """Returns the exit codes of those that have ended since this was last asked."""
        return {int(number): code for number, code in self.ask().items()}
