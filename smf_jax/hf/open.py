"""Opens the files of a model: a folder, or GGUF."""

from pathlib import Path

from smf_jax.config import require
from smf_jax.hf.files import open_folder
from smf_jax.hf.gguf import open_gguf
from smf_jax.hf.source import Source


def open_source(path: str | Path | Source) -> Source:
    """Returns what a model is read from, unless it is open already.

    Raises:
      ConfigError: There is no such folder or file, or it is no GGUF file.
    """
    if isinstance(path, Source):
        return path
    path = Path(path)
    if path.is_file():
        return open_gguf(path)
    require(path.is_dir(), f"{path}: no such directory")
    return open_folder(path)
