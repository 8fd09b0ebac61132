"""Parameters on disk, by orbax; the only file that knows how they lie there."""

import hashlib
import json
import os
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from smf_jax.config import ConfigError, require


def save(run_dir: Path, step: int, params: PyTree) -> None:
    """Writes the parameters after `step`; the folder appears whole or not at all."""
    folder = _folder(run_dir).absolute() / str(step)
    ocp.save(folder, params)
    sums, beside = _sums(folder), folder.with_suffix(".partial")
    beside.write_text(json.dumps(_checksums(folder)), encoding="utf-8")
    os.replace(beside, sums)


def _sums(folder: Path) -> Path:
    return folder.with_suffix(".json")


def _checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _require_intact(folder: Path) -> None:
    # orbax loads a flipped bit in silence.
    try:
        recorded = json.loads(_sums(folder).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{_sums(folder)}: not JSON ({error})") from error
    there = _checksums(folder)
    damaged = [
        name
        for name in sorted(recorded.keys() | there.keys())
        if recorded.get(name) != there.get(name)
    ]
    require(
        not damaged,
        f"{folder} is damaged: {', '.join(damaged)} missing or not as written",
    )


def load(run_dir: Path, abstract: PyTree) -> PyTree:
    """Returns the parameters of the latest step.

    Args:
      run_dir: The run that saved them.
      abstract: `jax.ShapeDtypeStruct`s of what is expected.

    Raises:
      ConfigError: There are none, or other ones than expected.
    """
    step = latest_step(run_dir)
    require(step is not None, f"{run_dir} holds no finished checkpoint")
    folder = _folder(run_dir).absolute() / str(step)
    _require_intact(folder)
    try:
        saved = ocp.metadata(folder).metadata
    except (ValueError, OSError) as error:
        raise ConfigError(f"{folder} cannot be read: {error}") from error
    differences = _differences(saved, abstract)
    require(not differences, f"{folder} holds another model: " + "; ".join(differences))
    try:
        return ocp.load(folder, jax.tree.map(_on_first_device, abstract))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{folder} cannot be read: {error}") from error


def _on_first_device(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    # Said outright: by default orbax puts arrays where they were when saved.
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def latest_step(run_dir: Path) -> int | None:
    """Returns the last step that was saved, or None."""
    steps = [int(path.name) for path in _folder(run_dir).glob("*") if _is_step(path)]
    return max(steps, default=None)


def params_hash(params: PyTree) -> str:
    """Returns 16 hex digits that name the names, types and bits of parameters."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        digest.update(f"{name} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _folder(run_dir: Path) -> Path:
    return Path(run_dir) / "checkpoints"


def _is_step(path: Path) -> bool:
    return path.is_dir() and path.name.isdecimal() and _sums(path).is_file()


def _differences(saved: PyTree, expected: PyTree) -> list[str]:
    # orbax casts another dtype in silence, so types are compared here.
    def described(tree):
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): (
                f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
            )
            for path, leaf in jax.tree.leaves_with_path(tree)
        }

    saved, expected = described(saved), described(expected)
    return [
        f"{name} is {saved.get(name, 'missing')}, not {expected.get(name, 'expected')}"
        for name in sorted(saved.keys() | expected.keys())
        if saved.get(name) != expected.get(name)
    ]
