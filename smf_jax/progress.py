"""The progress of long work: a bar in a terminal, now and then a line elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress

PLAIN_SECONDS = 10  # between lines without a terminal


@contextlib.contextmanager
def progress(
    title: str, total: int, console: Console
) -> Iterator[Callable[[int], None]]:
    """Yields a function that takes how much of `total` is done."""
    if console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    told = time.monotonic()

    def tell(done: int) -> None:
        nonlocal told
        if done < total and time.monotonic() - told > PLAIN_SECONDS:
            told = time.monotonic()
            console.print(f"{title}: {done:,} of {total:,}")

    yield tell
