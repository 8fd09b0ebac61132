"""Exit codes of the `smf` command, and the error of an interrupted one."""

import os
import sys
from typing import NoReturn

SAVED = 75  # interrupted; a checkpoint is saved if there was anything to save
AT_ONCE = 130  # interrupted without saving
PEER_LOST = 69  # another process of the run is lost


class Interrupted(Exception):
    """The command was interrupted, and no work is lost."""


def exit_now(code: int) -> NoReturn:
    """Ends this process without waiting for anything, from any thread."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
