"""The manifest of a checkpoint: progress of its run, and checksums of its files.

orbax does not notice a flipped bit, so nothing is loaded before every file has been
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
# Files of the run: a checkpoint is useless without the first two, not without others.
RUN_FILES = ("config.json", "tokenizer.json", "slots.safetensors")
OUTPUTS = ("teaching.json", "patch.safetensors", "retrofit.json")
LOG = "metrics.jsonl"  # append-only


class Manifest(NamedTuple):
    """What a checkpoint holds."""

    step: int
    progress: dict[str, Any]  # JSON that a resumed run needs besides the arrays
    metrics: dict[str, float]  # for `save.best`
    arrays: dict[str, str]  # type, shape and checksum of each array, by its name
    files: dict[str, str]  # SHA-256 of each file, by its path below the checkpoint
    run_files: dict[str, str]  # SHA-256 of each existing file of RUN_FILES
    outputs: dict[str, str]  # SHA-256 of each existing file of OUTPUTS
    log: dict[str, Any]  # size of LOG in "bytes", and their "sha256"


def folder_of(run_dir: Path, step: int) -> Path:
    """Returns the directory of the checkpoint of a step."""
    return Path(run_dir).absolute() / "checkpoints" / str(step)


def files_below(folder: Path) -> list[str]:
    """Returns the paths of all files below a checkpoint but its manifest, sorted."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(
        str(path.relative_to(folder)) for path in paths if path != folder / MANIFEST
    )


def file_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the SHA-256 of those of the named files of a directory that exist."""
    return {
        name: file_digest(folder / name) for name in names if (folder / name).is_file()
    }


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file, or why it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def log_digest(run_dir: Path, size: int | None = None) -> dict[str, Any]:
    """Returns the size and SHA-256 of LOG, or of its first `size` bytes."""
    path = run_dir / LOG
    start = path.read_bytes()[:size] if path.is_file() else b""
    return {"bytes": len(start), "sha256": hashlib.sha256(start).hexdigest()}


def write(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest into the directory of a checkpoint that is being saved."""
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(_text(manifest._asdict()))
        file.flush()
        os.fsync(file.fileno())


def _text(content: dict[str, Any]) -> str:
    body = json.dumps(content, sort_keys=True)
    checksum = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({"manifest": content, "sha256": checksum}, sort_keys=True) + "\n"


def read(run_dir: Path, step: int) -> Manifest:
    """Returns the manifest of a checkpoint, or raises `ConfigError`."""
    path = folder_of(run_dir, step) / MANIFEST
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)["manifest"]
        # Compared as text, so that even a changed space is found.
        manifest = Manifest(**content) if text == _text(content) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path} is damaged or missing ({reason})") from error
    if manifest is None or manifest.step != step:
        raise ConfigError(f"{path} is damaged: checksum or step mismatch")
    return manifest


def problems(run_dir: Path, step: int) -> list[str]:
    """Returns all damage to the files that a checkpoint needs, one line for each file.

    Every process has to call this: each reads its share of the files.
    """
    try:
        manifest = read(run_dir, step)
    except ConfigError as error:
        return [str(error)]
    folder = folder_of(run_dir, step)

    def digest(name: str) -> str:
        multihost.busy(f"checking {name}")
        return file_digest(folder / name)

    digests = multihost.split_work(digest, sorted(manifest.files))
    found = {name: digests.get(name, "") for name in files_below(folder)}
    return _damage(folder, manifest.files, found) + run_file_problems(run_dir, manifest)


def run_file_problems(run_dir: Path, manifest: Manifest) -> list[str]:
    """Returns all damage to the files of the run that a checkpoint needs."""
    saved = manifest.run_files
    return _damage(run_dir, saved, file_digests(run_dir, saved))


def output_problems(run_dir: Path, manifest: Manifest) -> list[str]:
    """Returns all damage to the other files that a run had written by a checkpoint."""
    saved = manifest.outputs
    damage = _damage(run_dir, saved, file_digests(run_dir, saved))
    if log_digest(run_dir, manifest.log["bytes"]) != manifest.log:
        damage.append(f"{run_dir / LOG} is damaged: checksum mismatch")
    return damage


def _damage(folder: Path, saved: dict[str, str], found: dict[str, str]) -> list[str]:
    damage = []
    for name in sorted(saved.keys() | found.keys()):
        if name not in found:
            damage.append(f"{folder / name} is missing")
        elif found[name].startswith("cannot"):
            damage.append(f"{folder / name} {found[name]}")
        elif name not in saved:
            damage.append(f"{folder / name} is not part of the checkpoint")
        elif saved[name] != found[name]:
            damage.append(f"{folder / name} is damaged: checksum mismatch")
    return damage
