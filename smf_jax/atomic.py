"""Files that appear whole or not at all."""

import os
from pathlib import Path


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file beside its place and renames it, over what was there before."""
    beside = path.with_name(path.name + ".partial")
    beside.write_bytes(content)
    os.replace(beside, path)
