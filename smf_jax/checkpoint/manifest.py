"""The manifest of a checkpoint: how far its run was, and what its files must be.

orbax loads a flipped bit without a word, so nothing is loaded before every file was
compared with the manifest, and the manifest with its own checksum.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from smf_jax.config import ConfigError

MANIFEST = "manifest.json"
RUN_FILES = ("config.json", "tokenizer.json")  # of the run; they never change


class Manifest(NamedTuple):
    """What a checkpoint holds."""

    step: int
    progress: dict[str, Any]  # what a run needs beside arrays to go on, as JSON
    metrics: dict[str, float]  # by which the best checkpoint is told
    arrays: dict[str, str]  # SHA-256 of each array's content, by its name
    files: dict[str, str]  # SHA-256 of each file, by its path below the checkpoint
    run_files: dict[str, str]  # the same of the run's configuration and tokenizer


def folder_of(run_dir: Path, step: int) -> Path:
    """Returns where the checkpoint of a step lies."""
    return Path(run_dir).absolute() / "checkpoints" / str(step)


def file_digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below `folder` but its manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): file_digest(path)
        for path in paths
        if path != folder / MANIFEST
    }


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest into a checkpoint that is not in its place yet."""
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(_text(manifest._asdict()))
        file.flush()
        os.fsync(file.fileno())


def _text(content: dict[str, Any]) -> str:
    body = json.dumps(content, sort_keys=True)
    checksum = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({"manifest": content, "sha256": checksum}, sort_keys=True) + "\n"


def read(run_dir: Path, step: int) -> Manifest:
    """Returns the manifest of a checkpoint.

    Raises:
      ConfigError: It is missing or not as it was written.
    """
    path = folder_of(run_dir, step) / MANIFEST
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)["manifest"]
        # Byte for byte: no change is too small to count, not even of a space.
        whole = text == _text(content)
        manifest = Manifest(**content) if whole else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path} is damaged or missing ({reason})") from error
    if manifest is None or manifest.step != step:
        raise ConfigError(f"{path} is damaged: it is not as it was written")
    return manifest


def problems(run_dir: Path, step: int) -> list[str]:
    """Returns what is wrong with the files of a checkpoint, one line a file."""
    try:
        manifest = read(run_dir, step)
    except ConfigError as error:
        return [str(error)]
    folder = folder_of(run_dir, step)
    found = [
        f"{folder / name} {what}"
        for name, what in _differences(manifest.files, file_digests(folder))
    ]
    paths = {name: Path(run_dir) / name for name in RUN_FILES}
    there = {name: file_digest(path) for name, path in paths.items() if path.is_file()}
    return found + [
        f"{paths.get(name, name)} {what}"
        for name, what in _differences(manifest.run_files, there)
    ]


def _differences(recorded: dict[str, str], there: dict[str, str]):
    for name in sorted(recorded.keys() | there.keys()):
        if name not in there:
            yield name, "is missing"
        elif name not in recorded:
            yield name, "does not belong there"
        elif recorded[name] != there[name]:
            yield name, "is not as it was written"
