"""Runs verbs as a user types them, in this process."""

from collections import Counter
from pathlib import Path

import jax

from smf_jax import cli

# A config prints as the call that makes it.
CONFIG_FILE = "from smf_jax.config import *\n\ndef config():\n    return {config!r}\n"


class Commands:
    """Runs verbs in a folder, and counts the programs that each compiles."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.compiled: dict[str, Counter] = {}

    def run(self, title: str, *arguments: str) -> int:
        """Runs a verb and returns its exit code."""
        compiled = self.compiled[title] = Counter()

        def listen(event, seconds, **details):
            if event == "/jax/core/compile/backend_compile_duration":
                compiled[details["fun_name"]] += 1

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            return cli.main(list(arguments))
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)

    def run_config(self, title: str, config, *more: str) -> int:
        """Writes a configuration file, and runs its verb on it."""
        path = self.write(title, config)
        return self.run(title, config.verb, str(path), *more)

    def write(self, title: str, config) -> Path:
        """Writes a configuration file."""
        path = self.folder / f"{title}.py"
        path.write_text(CONFIG_FILE.format(config=config))
        return path
