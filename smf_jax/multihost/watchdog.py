"""The watch of each process over all: who is silent, and whether they are stuck.

One thread exchanges signs of life through process 0, and hangs when that is cut off.
Another looks at what has come; it touches no network, and can end the process.
"""

import atexit
import contextlib
import faulthandler
import itertools
import json
import sys
import threading
import time
from collections.abc import Collection
from typing import NamedTuple

import jax
from jax._src import distributed as jax_distributed

from smf_jax.exits import PEER_LOST
from smf_jax.multihost import heartbeat as signs
from smf_jax.multihost.cluster import Who
from smf_jax.multihost.heartbeat import Sign
from smf_jax.multihost.process_end import end

ROOM = "smf_jax/"  # in the store that process 0 keeps
SIGNS, WORDS = f"{ROOM}sign/", f"{ROOM}word/"  # by number
BEAT = 1  # seconds between two exchanges
LAST_WORDS = 5  # seconds that others are given, at most, to end before process 0 does
AGAIN = "The last checkpoint stands: start all of them again to go on from it\n"


class Word(NamedTuple):
    """Why a process ends."""

    why: str  # empty: for reasons of its own
    stuck: bool  # and not that another is silent


SILENTLY = Word("", False)


class Seen(NamedTuple):
    """What the threads know of each process, themselves included, by its number."""

    beats: dict[int, tuple[int, float]]  # the last, and when it was first seen
    signs: dict[int, Sign]
    words: dict[int, Word]  # of those that end


def start(who: Who, silence: int, standstill: int) -> None:
    """Watches: a process of a run that is lost ends, with a line that says who did it.

    A run is lost when a process is not heard of for `silence` seconds, or when none
    has made a sign for `standstill` seconds.
    """
    now = time.monotonic()
    seen = Seen(
        dict.fromkeys(range(who.count), (-1, now)),
        dict.fromkeys(range(who.count), Sign(0, "start", "", now)),
        {},
    )
    over = threading.Event()
    threads = [
        threading.Thread(target=_exchange, args=(who, seen, over), daemon=True),
        threading.Thread(
            target=_look, args=(who, seen, silence, standstill, over), daemon=True
        ),
    ]
    for thread in threads:
        thread.start()
    atexit.register(_finish, over, threads)


def _finish(over: threading.Event, threads: list[threading.Thread]) -> None:
    # Here this process waits for the others to finish, so that it still watches them.
    jax.distributed.shutdown()
    over.set()
    for thread in threads:  # a thread that is in jax when Python ends aborts it
        thread.join(LAST_WORDS)
    faulthandler.cancel_dump_traceback_later()


def leave(number: int, others: Collection[int], word: Word = SILENTLY) -> None:
    """Tells process 0 that this one ends; process 0 waits for `others` to say so.

    Its own end ends them, and they may have something to write. Either is done after
    some seconds at the latest.
    """
    client = jax_distributed.global_state.client
    if number > 0:
        said = (f"{WORDS}{number}", json.dumps(word))
        telling = threading.Thread(target=_put, args=(client, *said), daemon=True)
        telling.start()
        telling.join(LAST_WORDS)
        return
    deadline = time.monotonic() + LAST_WORDS
    while time.monotonic() < deadline:
        store = client.key_value_dir_get(WORDS)
        if {int(key.removeprefix(WORDS)) for key, _ in store} >= {*others} - {0}:
            break
        time.sleep(BEAT / 20)
    time.sleep(BEAT)  # in which they end


def _put(client, key: str, value: str) -> None:
    # If it fails nobody hears of it, and that is noticed.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(key, value, allow_overwrite=True)


def _exchange(who: Who, seen: Seen, over: threading.Event) -> None:
    client = jax_distributed.global_state.client
    for beat in itertools.count():
        *sign, since = signs.last()
        content = json.dumps([beat, *sign, time.monotonic() - since])
        _put(client, f"{SIGNS}{who.number}", content)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _take(client.key_value_dir_get(ROOM), seen)
        if over.wait(BEAT):
            return


def _take(store: list[tuple[str, str]], seen: Seen) -> None:
    now = time.monotonic()
    for key, value in store:
        number, content = int(key.rpartition("/")[2]), json.loads(value)
        if key.startswith(WORDS):
            seen.words[number] = Word(*content)
            continue
        beat, *sign, age = content  # clocks differ, ages do not
        if seen.beats[number][0] != beat:
            seen.beats[number] = beat, now
            seen.signs[number] = Sign(*sign, now - age)


def _look(who: Who, seen: Seen, silence: int, standstill: int, over) -> None:
    # Process 0 ends after the others, which it would abort.
    patience = silence + (2 * BEAT if who.number == 0 else 0)
    while True:
        # Where native code holds the interpreter no thread of Python runs, and the
        # others miss this process. This timer needs no Python: it shows the stacks,
        # and ends what would stay for ever.
        faulthandler.dump_traceback_later(patience, exit=True)
        seen.signs[who.number] = signs.last()
        words = [word for word in list(seen.words.values()) if word.why]
        word = words[0] if words else None
        word = word or _silent(who, seen, silence) or _stuck(seen, standstill)
        if word is not None:
            break
        if over.wait(BEAT / 2):
            return
    faulthandler.cancel_dump_traceback_later()
    if word.stuck:
        sys.stderr.flush()
        faulthandler.dump_traceback()
    sys.stderr.write(f"smf: {word.why}; this process stops, too. {AGAIN}")
    sys.stderr.flush()
    now, beats = time.monotonic(), seen.beats.items()
    alive = {other for other, (_, heard) in beats if now - heard <= silence}
    if who.number in alive:  # so that process 0 answers
        leave(who.number, alive, word)
    end(PEER_LOST)  # the main thread may wait for ever


def _answered(who: Who, seen: Seen) -> float:
    """Returns when process 0 last gave this process its own beat back."""
    return seen.beats[who.number][1]


def _silent(who: Who, seen: Seen, silence: int) -> Word | None:
    last = _answered(who, seen)
    beats = seen.beats.items()
    silent = [other for other, (_, heard) in beats if last - heard > silence]
    if time.monotonic() - last > silence:
        silent = [0]
    if not silent:
        return None
    names = ", ".join(f"process {other}" for other in silent)
    return Word(
        f"{names} of {who.count} not heard of for {silence} s, dead or cut off", False
    )


def _stuck(seen: Seen, standstill: int) -> Word | None:
    last = max(sign.since for sign in seen.signs.values())
    if time.monotonic() - last <= standstill:
        return None
    return Word(
        f"no process has made a sign for {standstill} s: "
        f"{signs.furthest_behind(seen.signs)}; where this one is stands above",
        True,
    )
