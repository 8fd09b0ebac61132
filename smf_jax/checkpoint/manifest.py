"""The manifest of a checkpoint: how far its run was, and what its files must be.

orbax loads a flipped bit without a word, so nothing is loaded before every file was
compared with the manifest, and the manifest with its own checksum.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from smf_jax import multihost
from smf_jax.config import ConfigError

MANIFEST = "manifest.json"
# Of the run. Without the first two a checkpoint is of no use; the others tell of it.
RUN_FILES = ("config.json", "tokenizer.json")
OUTPUTS = ("teaching.json", "patch.safetensors", "retrofit.json")
LOG = "metrics.jsonl"  # of the run; it only grows


class Manifest(NamedTuple):
    """What a checkpoint holds."""

    step: int
    progress: dict[str, Any]  # what a run needs beside arrays to go on, as JSON
    metrics: dict[str, float]  # by which the best checkpoint is told
    arrays: dict[str, str]  # type, shape and checksum of each array, by its name
    files: dict[str, str]  # SHA-256 of each file, by its path below the checkpoint
    run_files: dict[str, str]  # the same of those of RUN_FILES that were there
    outputs: dict[str, str]  # and of OUTPUTS
    log: dict[str, Any]  # how many "bytes" LOG had, and their "sha256"


def folder_of(run_dir: Path, step: int) -> Path:
    """Returns where the checkpoint of a step lies."""
    return Path(run_dir).absolute() / "checkpoints" / str(step)


def file_digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below `folder` but its manifest."""
    return {str(path.relative_to(folder)): file_digest(path) for path in _files(folder)}


def _files(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if path != folder / MANIFEST]


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file, or what keeps it from being read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def digests_of(run_dir: Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the SHA-256 of those of the named files of a run that are there."""
    paths = {name: run_dir / name for name in names}
    return {name: file_digest(path) for name, path in paths.items() if path.is_file()}


def log_size(run_dir: Path) -> int:
    """Returns how many bytes LOG has."""
    path = run_dir / LOG
    return path.stat().st_size if path.is_file() else 0


def log_digest(run_dir: Path, size: int) -> dict[str, Any]:
    """Returns the SHA-256 of the first bytes of LOG, and how many they are."""
    start = (run_dir / LOG).read_bytes()[:size] if size else b""
    return {"bytes": len(start), "sha256": hashlib.sha256(start).hexdigest()}


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
    """Returns what is wrong with the files a checkpoint stands on, one line a file.

    Of several processes, all of which are to ask, each reads its share of the files.
    """
    try:
        manifest = read(run_dir, step)
    except ConfigError as error:
        return [str(error)]
    folder = folder_of(run_dir, step)
    found = [
        f"{folder / name} {what}"
        for name, what in _differences(manifest.files, _digests_there(folder, manifest))
    ]
    return found + run_file_problems(run_dir, manifest)


def _digests_there(folder: Path, manifest: Manifest) -> dict[str, str]:
    def digest(name):
        multihost.busy(f"{name} compared")
        return file_digest(folder / name)

    there = {str(path.relative_to(folder)) for path in _files(folder)}
    digests = multihost.split_work(digest, sorted(manifest.files))
    return {name: digests.get(name, "") for name in there}


def run_file_problems(run_dir: Path, manifest: Manifest) -> list[str]:
    """Returns what is wrong with the files of a run that a checkpoint needs."""
    return _wrong(run_dir, manifest.run_files)


def output_problems(run_dir: Path, manifest: Manifest) -> list[str]:
    """Returns what is wrong with what a run wrote of itself by a checkpoint."""
    wrong = _wrong(run_dir, manifest.outputs)
    size = min(manifest.log["bytes"], log_size(run_dir))
    if log_digest(run_dir, size) != manifest.log:
        wrong.append(f"{run_dir / LOG} is not as it was written")
    return wrong


def _wrong(run_dir: Path, recorded: dict[str, str]) -> list[str]:
    there = digests_of(run_dir, recorded)
    return [f"{run_dir / name} {what}" for name, what in _differences(recorded, there)]


def _differences(recorded: dict[str, str], there: dict[str, str]):
    for name in sorted(recorded.keys() | there.keys()):
        if name not in there:
            yield name, "is missing"
        elif there[name].startswith("cannot"):
            yield name, there[name]
        elif name not in recorded:
            yield name, "does not belong there"
        elif recorded[name] != there[name]:
            yield name, "is not as it was written"
