"""Verbs as a user types them, run in this process."""

from collections import Counter

import jax

from smf_jax import cli

# A config prints as the call that makes it.
CONFIG_FILE = "from smf_jax.config import *\n\ndef config():\n    return {config!r}\n"


class Commands:
    """Runs verbs, and counts what each of them compiles."""

    def __init__(self, folder):
        self.folder = folder
        self.compiled: dict[str, Counter] = {}

    def run(self, title: str, *arguments: str) -> int:
        compiled = self.compiled[title] = Counter()

        def listen(event, seconds, **details):
            if event == "/jax/core/compile/backend_compile_duration":
                compiled[details["fun_name"]] += 1

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            return cli.main(list(arguments))
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)

    def run_config(self, title: str, verb: str, config) -> int:
        path = self.folder / f"{title}.py"
        path.write_text(CONFIG_FILE.format(config=config))
        return self.run(title, verb, str(path))
