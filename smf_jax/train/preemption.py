"""Stops training on a signal, after a checkpoint."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

import jax

from smf_jax import multihost
from smf_jax.exits import AT_ONCE


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[int], bool]]:
    """Yields `stop_requested(step)`: whether to stop after that step.

    SIGTERM, Ctrl-C and SIGHUP request it; a second Ctrl-C ends the process. Of several
    processes all stop after the same step when any of them gets the signal; there,
    JAX's preemption service handles SIGTERM.
    """
    requested = False

    def request(signal_number, frame):
        nonlocal requested
        if requested and signal_number == signal.SIGINT:
            sys.stderr.write("stopped at once\n")
            os._exit(AT_ONCE)
        if signal_number == signal.SIGINT:
            sys.stderr.write("stopping after this step; Ctrl-C again stops at once\n")
        requested = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    signals = [signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        signals.append(signal.SIGHUP)
    if jax.process_count() == 1:
        signals.append(signal.SIGTERM)
    before = {number: signal.signal(number, request) for number in signals}

    def stop_requested(step: int) -> bool:
        if jax.process_count() > 1:
            return multihost.preempted(step)
        return requested

    try:
        yield stop_requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
