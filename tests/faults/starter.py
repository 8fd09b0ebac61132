"""Starts programs as children of one process that has imported everything once.

Reads one JSON object a line,

    {"program": "one_of_many", "argv": [...], "environment": {...}, "output": "path"}

and answers with the process id of the child. Answers {} with the exit code (negative:
the signal that ended it) of each child that ended since the last {}. A child ends as
any Python process does, with all exit handlers.
"""

import json
import os
import runpy
import sys

from tests.faults import worker  # noqa: F401  imports everything, before forking


def run(program: str, argv: list[str], environment: dict, output: str) -> None:
    """Runs a program in this process, as if it had been started as one."""
    out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(environment)
    sys.argv[1:] = argv
    runpy.run_module(f"tests.faults.{program}", run_name="__main__", alter_sys=True)


def ended(running: set[int]) -> dict[int, int]:
    """Returns the exit codes of children that have ended, and removes them."""
    codes = {}
    for child in list(running):
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            running.remove(child)
            codes[child] = os.waitstatus_to_exitcode(status)
    return codes


def main() -> None:
    running = set()
    for line in sys.stdin:
        task = json.loads(line)
        if not task:
            print(json.dumps(ended(running)), flush=True)
            continue
        child = os.fork()
        if child == 0:
            return run(**task)
        running.add(child)
        print(child, flush=True)


if __name__ == "__main__":
    main()
