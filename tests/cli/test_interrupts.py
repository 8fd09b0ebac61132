"""Ctrl-C ends a program at every moment of its start, and twice at any other."""

import re
import signal
import subprocess
import sys
import time

import pytest

from smf_jax.cli import interrupts
from tests.faults.children import HEED_CTRL_C, ROOT, SMF

AT_ONCE = 130  # exit code, see docs/reference/exit_codes.md
# Writes "ready" when its last line, what it does, has begun.
INSTALL = f"""{HEED_CTRL_C}
import hashlib, sys, threading, time
from smf_jax.cli import interrupts
from smf_jax.exits import Interrupted

interrupts.install()
threading.Timer(0.1, lambda: print("ready", file=sys.stderr, flush=True)).start()
"""
BEGIN = f"{INSTALL}interrupts.begin()\n"
SWALLOW = """
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(60)
"""
CALLBACK = """
class Callback:
    def __del__(self):
        time.sleep(0.2)
        raise ERROR

try:
    Callback()
    time.sleep(60)
except ERROR:
    sys.exit("caught")
"""
TURNED = f"""{HEED_CTRL_C}
import sys, threading, time
from smf_jax import cli
from smf_jax.cli.commands import VERBS
from smf_jax.config import ConfigError

def work(arguments, console):
    threading.Timer(0.1, lambda: print("ready", file=sys.stderr, flush=True)).start()
    try:
        time.sleep(60)
    except KeyboardInterrupt as error:
        raise ERROR from error

VERBS["doctor"] = work
sys.argv[1:] = ["doctor"]
cli.run()
"""
NATIVE = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"  # minutes


def start(program: str, *argv: str) -> subprocess.Popen:
    """Starts a program whose imports are written to stderr."""
    command = [sys.executable, "-X", "importtime", "-c", program, *argv]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def interrupt(process: subprocess.Popen, at: str, times: int = 1) -> list[str]:
    """Sends Ctrl-C at a line that ends so; returns what is written after it."""
    assert any(re.search(rf"\b{at}$", line.rstrip()) for line in process.stderr)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)  # two at once would count as one
    try:
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    return [line for line in errors.splitlines() if not line.startswith("import time")]


@pytest.mark.parametrize(
    "module", ["rich.text", "tyro", "jaxlib", "jax._src.lax.lax", "optax", "grain"]
)
def test_one_ends_a_start_at_once_and_in_one_line(module):
    with start(SMF, "finetune", "nothing.py") as process:
        assert interrupt(process, module) == ["smf finetune: interrupted"]
        assert process.returncode == AT_ONCE


@pytest.mark.parametrize("does", [SWALLOW, NATIVE], ids=["swallows", "native"])
@pytest.mark.parametrize(
    ("state", "times"), [(INSTALL, 1), (BEGIN, 2)], ids=["start", "begun"]
)
def test_they_end_a_program_that_swallows_them_or_is_in_native_code(does, state, times):
    with start(f"{state}{does}") as process:
        assert interrupt(process, "ready", times) == ["smf: interrupted"]
        assert process.returncode == AT_ONCE


@pytest.mark.parametrize("error", ["ConfigError('x')", "RuntimeError"])
def test_one_that_a_library_turns_into_another_error_is_reported_as_itself(error):
    with start(TURNED.replace("ERROR", error)) as process:
        assert interrupt(process, "ready") == ["smf doctor: interrupted"]
        assert process.returncode == AT_ONCE


def test_one_that_is_swallowed_ends_a_program_in_time():
    program = f"{BEGIN}interrupts.PATIENCE = 0.5\n{SWALLOW}"
    with start(program) as process:
        assert interrupt(process, "ready") == ["smf: interrupted"]


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "Interrupted"])
def test_what_a_callback_swallows_is_raised_after_it(error):
    with start(BEGIN + CALLBACK.replace("ERROR", error)) as process:
        assert interrupt(process, "ready", times=0) == ["caught"]


def test_one_lets_a_program_that_has_begun_undo_its_work():
    undo = "try:\n    time.sleep(60)\nfinally:\n    sys.exit('undone')"
    with start(f"{BEGIN}{undo}") as process:
        assert interrupt(process, "ready") == ["undone"]


def test_a_program_in_the_background_of_a_script_heeds_none():
    ignored = INSTALL.replace("signal.default_int_handler", "signal.SIG_IGN")
    end = "time.sleep(0.3)\nsys.exit('ended')"
    with start(f"{ignored}{end}") as process:
        assert interrupt(process, "ready", times=2) == ["ended"]


def test_in_a_process_of_others_nothing_is_installed():
    before = signal.getsignal(signal.SIGINT)

    interrupts.begin()

    assert signal.getsignal(signal.SIGINT) is before
