"""Damages runs on purpose."""

import json
import shutil
from pathlib import Path

from smf_jax import checkpoint


def interrupt(run_dir: Path) -> Path:
    """Makes a run one that was killed in its last save."""
    shutil.rmtree(run_dir / "checkpoints" / str(checkpoint.latest_step(run_dir)))
    (run_dir / "usage.safetensors").unlink(missing_ok=True)
    return run_dir


def flip(path: Path, index: int = -1) -> None:
    """Flips a bit of a file."""
    content = bytearray(path.read_bytes())
    content[index] ^= 1
    path.write_bytes(content)


def largest(folder: Path) -> Path:
    """Returns the largest file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def edit_record(run_dir: Path, edit) -> None:
    """Edits the record of a run, and makes all its manifests vouch for it."""
    path = run_dir / "config.json"
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    digest = checkpoint.manifest.file_digest(path)
    for step in checkpoint.steps(run_dir):
        manifest = checkpoint.read(run_dir, step)
        run_files = manifest.run_files | {"config.json": digest}
        folder = run_dir / "checkpoints" / str(step)
        checkpoint.manifest.write(folder, manifest._replace(run_files=run_files))
