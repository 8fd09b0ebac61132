"""Runs the code blocks of a Markdown page, in order and as written.

All `bash` and `python` blocks run in one shell, so that an environment that a block
activates stays active. The first command that fails ends it.

    python docs/run_blocks.py README.md [--without COMMAND]
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def script(page: str, without: str | None = None) -> str:
    """Returns a shell script of the blocks of a page, less lines that begin so."""
    lines = page.splitlines(keepends=True)
    if without is not None:
        lines = [line for line in lines if not line.startswith(without)]
    blocks = [
        block if language == "bash" else f"python - <<'END'\n{block}END\n"
        for language, block in BLOCK.findall("".join(lines))
    ]
    return "\n".join(blocks)


def main() -> int:
    """Runs the page that the command line names, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--without", help="leave out lines that begin so")
    arguments = parser.parse_args()
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script(arguments.page.read_text(), arguments.without))
        file.flush()
        # -v prints each line before it runs.
        command = ["bash", "-euv", "-o", "pipefail", file.name]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
