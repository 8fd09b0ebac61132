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


class Runner:
    """Runs commands in children of one process that has imported everything."""

    def __init__(self, folder: Path):
        self.folder = folder
        library = folder / "fault.so"
        source = str(Path(__file__).with_name("fault.c"))
        flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
        subprocess.run(["cc", *flags, "-o", library, source, "-ldl"], check=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.worker", str(folder / "cache")],
            cwd=ROOT,
            env=os.environ | {"LD_PRELOAD": str(library)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *argv, folder: Path | str = "", **faults) -> Ended:
        task = {"argv": [str(a) for a in argv], "folder": str(folder), **faults}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))

    def stop(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0

    def write(self, name: str, config) -> Path:
        path = self.folder / f"{name}.py"
        path.write_text(CONFIG_FILE.format(config=config))
        return path


class Starter:
    """Starts programs as children of one process, and asks it how they ended."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.starter"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, program: str, argv: list[str], environment: dict, output) -> int:
        """Returns the number of the process."""
        task = {"program": program, "argv": argv, "environment": environment}
        return self._ask(**task, output=str(output))

    def ended(self) -> dict[int, int]:
        """Returns the exit codes of those that have ended since this was last asked."""
        return {int(number): code for number, code in self._ask().items()}

    def stop(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0

    def _ask(self, **task):
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())
