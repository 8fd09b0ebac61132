"""Atomic file writes, and errors that name the file."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name, then renames it to `path`."""
    partial = path.with_name(path.name + ".partial")
    with name_file(path):
        partial.write_bytes(content)
        os.replace(partial, path)


@contextlib.contextmanager
def name_file(path: Path) -> Iterator[None]:
    """Gives an error of the operating system the name of the file that it is about.

    Those of writing, such as a full disk, have none.
    """
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
