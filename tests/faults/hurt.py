"""What happens to one of several processes."""

import ctypes
import os
import time


def hurt(how: int | str) -> None:
    """Sends this process a signal, or "sleep"s or "hold"s the interpreter for ever."""
    print("hurt at", time.monotonic(), flush=True)
    if how == "sleep":
        while True:
            time.sleep(1)
    elif how == "hold":
        ctypes.PyDLL(None).sleep(10_000)
    else:
        os.kill(os.getpid(), how)
