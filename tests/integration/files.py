"""Reads the files of runs, and damages them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smf_jax import checkpoint

TIMES = ("seconds", "tokens_per_second")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def rows(run_dir: Path) -> list[dict]:
    """Returns the rows of `metrics.jsonl`."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def content(run_dir: Path) -> dict[Path, bytes]:
    """Returns all files of a run but its lock."""
    files = (path for path in run_dir.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if path.name != ".lock"}


def interrupt(run_dir: Path) -> Path:
    """Makes a run one that was killed in its last save."""
    shutil.rmtree(run_dir / "checkpoints" / str(checkpoint.latest_step(run_dir)))
    (run_dir / "usage.safetensors").unlink(missing_ok=True)
    return run_dir


def flip(path: Path, index: int = -1) -> Path:
    """Flips a bit of a file."""
    damaged = bytearray(path.read_bytes())
    damaged[index] ^= 1
    path.write_bytes(damaged)
    return path


def largest(folder: Path) -> Path:
    """Returns the largest file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def edit_record(run_dir: Path, edit: Callable[[dict], None]) -> Path:
    """Edits the record of a run, and makes all its manifests vouch for it."""
    path = run_dir / "config.json"
    record = read_json(path)
    edit(record)
    path.write_text(json.dumps(record))
    digest = checkpoint.manifest.file_digest(path)
    for step in checkpoint.steps(run_dir):
        manifest = checkpoint.read(run_dir, step)
        run_files = manifest.run_files | {"config.json": digest}
        folder = run_dir / "checkpoints" / str(step)
        checkpoint.manifest.write(folder, manifest._replace(run_files=run_files))
    return run_dir
