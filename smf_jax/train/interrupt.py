"""A run that is told to stop: it saves first. Told twice, it stops at once."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

import jax

from smf_jax import distributed
from smf_jax.exits import AT_ONCE


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[int], bool]]:
    """Yields `stop(step)`: whether to stop after that step, since a signal said so.

    SIGTERM, Ctrl-C and a closed terminal ask for it; a second Ctrl-C ends the process.
    Of several processes all stop after one step when any of them gets the signal;
    there, SIGTERM is jax's own to catch.
    """
    asked = False

    def ask(signal_number, frame):
        nonlocal asked
        if asked and signal_number == signal.SIGINT:
            sys.stderr.write("stopped at once\n")
            os._exit(AT_ONCE)
        if signal_number == signal.SIGINT:
            sys.stderr.write("stopping after this step; Ctrl-C again stops at once\n")
        asked = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    ours = [signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        ours.append(signal.SIGHUP)
    if jax.process_count() == 1:
        ours.append(signal.SIGTERM)
    before = {number: signal.signal(number, ask) for number in ours}
    try:
        yield (
            lambda step: (
                distributed.preempted(step) or (asked and jax.process_count() == 1)
            )
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
