"""How a command ends when it does not end by itself: exit codes, and one error."""

import os
import sys
from typing import NoReturn

SAVED = 75  # told to stop, and saved what there was; the same command goes on
AT_ONCE = 130  # told to stop at once, without saving
PEER_LOST = 69  # another process of the run is missing


class Interrupted(Exception):
    """A command was told to stop, and nothing of it is lost."""


def exit_now(code: int) -> NoReturn:
    """Ends this process without waiting for anything, from any thread."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
