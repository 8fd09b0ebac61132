"""Atomic file writes."""

import os
from pathlib import Path


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name, then renames it to `path`."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
