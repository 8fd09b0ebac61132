"""The watch of each process over all: who is silent, and whether they are stuck.

One thread exchanges signs of life through process 0, and hangs when that is cut off.
Another looks at what has come; it touches no network, and can end the process.
"""

import contextlib
import faulthandler
import itertools
import json
import queue
import sys
import threading
import time
from typing import NamedTuple

import jax
from jax._src import distributed as jax_distributed

from smf_jax.exits import PEER_LOST
from smf_jax.hosts import signs
from smf_jax.hosts.ends import end
from smf_jax.hosts.signs import Sign
from smf_jax.hosts.who import Who

ROOM = "smf_jax/"  # in the store that process 0 keeps
BEAT = 1  # seconds between two exchanges
LAST_WORDS = 5  # seconds that others are given, at most, to end before process 0 does
AGAIN = "The last checkpoint stands: start all of them again to go on from it\n"


class Word(NamedTuple):
    """Why a process ends."""

    why: str
    stuck: bool  # and not that another is silent


class Seen(NamedTuple):
    """What the threads know of each process, themselves included, by its number."""

    beats: dict[int, tuple[int, float]]  # the last, and when it was first seen
    signs: dict[int, Sign]
    words: dict[int, Word]  # of those that end


def watch(who: Who, silence: int, standstill: int) -> None:
    """Ends this process, with a line that names who is to blame, when a run is lost.

    That is when another process is not heard of for `silence` seconds, or when no
    process has made a sign for `standstill` seconds; and when another one ends so.
    """
    now = time.monotonic()
    seen = Seen(
        dict.fromkeys(range(who.count), (-1, now)),
        dict.fromkeys(range(who.count), Sign(0, "start", "", now)),
        {},
    )
    mine: queue.SimpleQueue[Word] = queue.SimpleQueue()
    looks = (who, seen, mine, silence, standstill)
    threading.Thread(target=_exchange, args=(who, seen, mine), daemon=True).start()
    threading.Thread(target=_look, args=looks, daemon=True).start()


def _exchange(who: Who, seen: Seen, mine: queue.SimpleQueue[Word]) -> None:
    client = jax_distributed.global_state.client
    for beat in itertools.count():
        # If it fails there is no beat, and that is noticed.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            *sign, since = signs.last()
            content = json.dumps([beat, *sign, time.monotonic() - since])
            key = f"{ROOM}sign/{who.number}"
            client.key_value_set(key, content, allow_overwrite=True)
            _take(client.key_value_dir_get(ROOM), seen)
        with contextlib.suppress(queue.Empty, jax.errors.JaxRuntimeError):
            word = mine.get(timeout=BEAT)
            client.key_value_set(f"{ROOM}word/{who.number}", json.dumps(word))
            seen.words[who.number] = word


def _take(store: list[tuple[str, str]], seen: Seen) -> None:
    now = time.monotonic()
    for key, value in store:
        kind, number = key.removeprefix(ROOM).split("/")
        number, content = int(number), json.loads(value)
        if kind == "word":
            seen.words[number] = Word(*content)
            continue
        beat, *sign, age = content  # clocks differ, ages do not
        if seen.beats[number][0] != beat:
            seen.beats[number] = beat, now
            seen.signs[number] = Sign(*sign, now - age)


def _look(who, seen: Seen, mine, silence: int, standstill: int) -> None:
    while True:
        # Where native code holds the interpreter no thread of Python runs, and the
        # others miss this process. This timer needs no Python: it shows the stacks,
        # and ends what would stay for ever.
        faulthandler.dump_traceback_later(silence + 2 * BEAT, exit=True)
        seen.signs[who.number] = signs.last()
        word = next(iter(list(seen.words.values())), None)
        word = word or _silent(who, seen, silence) or _stuck(seen, standstill)
        if word is not None:
            break
        time.sleep(BEAT / 2)
    faulthandler.cancel_dump_traceback_later()
    if word.stuck:
        sys.stderr.flush()
        faulthandler.dump_traceback()
    sys.stderr.write(f"smf: {word.why}; this process stops, too. {AGAIN}")
    sys.stderr.flush()
    mine.put(word)
    if time.monotonic() - _answered(who, seen) <= silence:
        _take_leave(who, seen)
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


def _take_leave(who: Who, seen: Seen) -> None:
    # Process 0 ends last: its end ends the others, before they have said why.
    waited = range(who.count) if who.number == 0 else [who.number]
    deadline = time.monotonic() + LAST_WORDS
    while not seen.words.keys() >= {*waited} and time.monotonic() < deadline:
        time.sleep(BEAT / 20)
    if who.number == 0:
        time.sleep(BEAT)
