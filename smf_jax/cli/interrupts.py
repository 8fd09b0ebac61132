"""Ctrl-C at every moment of a program; `cli.main` alone installs nothing.

Python raises KeyboardInterrupt in the main thread, between two of its instructions. So
it comes late if that thread is in native code, and libraries swallow it: jax does where
it looks for devices, and where the garbage collector calls it.
"""

import functools
import os
import select
import signal
import sys
import threading
from typing import NoReturn

from smf_jax.exits import AT_ONCE, Interrupted

GRACE = 0.2  # seconds that the main thread gets to end the process by itself
PATIENCE = 10  # the same, where it has something to undo

_begun = threading.Event()


def install() -> None:
    """Has Ctrl-C end this program: at once until `begin`, the second in any case.

    One that ignores Ctrl-C, as in the background of a script, still does.
    """
    sys.unraisablehook = _repeat
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    signal.signal(signal.SIGINT, _end)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def begin() -> None:
    """Has the first Ctrl-C raise KeyboardInterrupt from now on, to undo work."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, _interrupt)
        _begun.set()


def end_if_raised() -> None:
    """Ends this program if Ctrl-C raised KeyboardInterrupt, whatever became of it.

    Libraries turn it into errors of their own.
    """
    if _begun.is_set() and signal.getsignal(signal.SIGINT) is _end:
        _end()


def _interrupt(signal_number, frame) -> NoReturn:
    signal.signal(signal.SIGINT, _end)
    raise KeyboardInterrupt


def _end(signal_number=None, frame=None) -> NoReturn:
    try:
        line = " ".join(["smf", *sys.argv[1:2]]) + ": interrupted\n"
        os.write(2, line.encode())  # not a stream, which may be what is interrupted
    finally:
        os._exit(AT_ONCE)


def _repeat(unraisable) -> None:
    """Raises an interrupt again, soon after the callback that has swallowed it."""
    error = unraisable.exc_value
    if not isinstance(error, KeyboardInterrupt | Interrupted):
        sys.__unraisablehook__(unraisable)
        return
    signal.signal(signal.SIGALRM, functools.partial(_raise, error))
    signal.setitimer(signal.ITIMER_REAL, 0.01)


def _raise(error: BaseException, signal_number, frame) -> NoReturn:
    raise error


def _watch(reader: int) -> None:
    """Ends the process if the main thread does not in time.

    Training may take its time after the first Ctrl-C: see train/preemption.py.
    """
    interrupts, seconds = 0, None
    while select.select([reader], [], [], seconds)[0]:
        if signal.SIGINT not in (signals := os.read(reader, 64)):
            continue
        interrupts += signals.count(signal.SIGINT)
        if interrupts > 1 or not _begun.is_set():
            seconds = GRACE
        elif signal.getsignal(signal.SIGINT) in (_interrupt, _end):
            seconds = PATIENCE
    _end()
