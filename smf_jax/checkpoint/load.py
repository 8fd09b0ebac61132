"""Loads checkpoints: only what was saved, and only what is expected."""

import os
import shutil
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from smf_jax.checkpoint import manifest
from smf_jax.checkpoint.digest import digests
from smf_jax.checkpoint.manifest import Manifest
from smf_jax.config import ConfigError, require
from smf_jax.sharding import ONE_DEVICE
from smf_jax.tree import named


def steps(run_dir: Path) -> list[int]:
    """Returns the saved steps, in order."""
    folders = (Path(run_dir) / "checkpoints").glob("*")
    return sorted(int(path.name) for path in folders if path.name.isdecimal())


def latest_step(run_dir: Path) -> int | None:
    """Returns the last saved step, or None."""
    return max(steps(run_dir), default=None)


def load(
    run_dir: Path, step: int, abstract: dict[str, PyTree], is_checked: bool = False
) -> tuple[dict[str, PyTree], Manifest]:
    """Returns arrays of a checkpoint, and its manifest.

    `abstract` holds the expected arrays as `jax.ShapeDtypeStruct`s; without a sharding
    they are put on one device. Other saved arrays are not loaded. `is_checked` says
    that `problems` has just found no damage.

    Raises:
      ConfigError: The checkpoint is damaged, or holds other arrays than expected.
    """
    if not is_checked:
        damage = manifest.problems(run_dir, step)
        require(not damage, "; ".join(damage))
    folder = manifest.folder_of(run_dir, step) / "arrays"
    try:
        saved = ocp.checkpointables_metadata(folder).metadata
        differences = _differences(
            {name: saved.get(name) for name in abstract}, abstract
        )
        require(
            not differences, f"{folder} holds another model: " + "; ".join(differences)
        )
        loaded = ocp.load_checkpointables(folder, jax.tree.map(_sharded, abstract))
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(f"{folder} cannot be read: {error}") from error
    record = manifest.read(run_dir, step)
    changed = [
        name
        for name, digest in digests(loaded).items()
        if record.arrays.get(name) != digest
    ]
    require(
        not changed,
        f"{folder} was not loaded as it was saved: checksum mismatch of "
        f"{', '.join(changed)}",
    )
    return loaded, record


def _sharded(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    # By default orbax restores the sharding that an array was saved with.
    sharding = leaf.sharding or ONE_DEVICE.replicated
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _differences(saved: PyTree, expected: PyTree) -> list[str]:
    # Types, too: orbax would cast silently.
    saved, expected = (
        {
            name: f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
            for name, leaf in named(tree).items()
        }
        for tree in (saved, expected)
    )
    return [
        f"{name} is {saved.get(name, 'missing')}, not {expected.get(name, 'expected')}"
        for name in sorted(saved.keys() | expected.keys())
        if saved.get(name) != expected.get(name)
    ]


def discard_debris(run_dir: Path) -> None:
    """Removes the remains of an interrupted save or removal."""
    for path in (Path(run_dir) / "checkpoints").glob("*"):
        if path.suffix in (".saving", ".deleting") and path.is_dir():
            shutil.rmtree(path)


def set_aside(run_dir: Path, step: int) -> Path:
    """Renames a damaged checkpoint, so that its step can be saved again."""
    folder = manifest.folder_of(run_dir, step)
    target, number = folder.with_name(f"{step}.damaged"), 1
    while target.exists():
        number += 1
        target = folder.with_name(f"{step}.damaged-{number}")
    os.rename(folder, target)
    return target
