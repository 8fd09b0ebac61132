"""Loading: nothing that is not what was saved, and not what is expected."""

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
    """Returns the steps that were saved, in order."""
    folders = (Path(run_dir) / "checkpoints").glob("*")
    return sorted(int(path.name) for path in folders if path.name.isdecimal())


def latest_step(run_dir: Path) -> int | None:
    """Returns the last step that was saved, or None."""
    return max(steps(run_dir), default=None)


def load(
    run_dir: Path, step: int, abstract: dict[str, PyTree], is_checked: bool = False
) -> tuple[dict[str, PyTree], Manifest]:
    """Returns arrays of a checkpoint, and its manifest.

    Args:
      run_dir: The run that saved them.
      step: After which step.
      abstract: `jax.ShapeDtypeStruct`s of what is expected, by the names that they
        were saved under, with the place of each, or else put on one device; what else
        was saved is not loaded.
      is_checked: Whether its files were found to be whole just now.

    Raises:
      ConfigError: The checkpoint is damaged, or holds other arrays than expected.
    """
    if not is_checked:
        damaged = manifest.problems(run_dir, step)
        require(not damaged, "; ".join(damaged))
    folder = manifest.folder_of(run_dir, step) / "arrays"
    try:
        saved = ocp.checkpointables_metadata(folder).metadata
        differences = _differences(
            {name: saved.get(name) for name in abstract}, abstract
        )
        require(
            not differences, f"{folder} holds another model: " + "; ".join(differences)
        )
        loaded = ocp.load_checkpointables(folder, jax.tree.map(_placed, abstract))
    except (ValueError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{folder} cannot be read: {error}") from error
    recorded = manifest.read(run_dir, step)
    changed = [
        name
        for name, digest in digests(loaded).items()
        if recorded.arrays.get(name) != digest
    ]
    require(
        not changed,
        f"{folder} gave other numbers than were saved: {', '.join(changed)}",
    )
    return loaded, recorded


def _placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    # Said outright: by default orbax puts arrays where they were when saved.
    sharding = leaf.sharding or ONE_DEVICE.replicated
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _differences(saved: PyTree, expected: PyTree) -> list[str]:
    # orbax casts another dtype in silence, so types are compared here.
    def described(tree):
        return {
            name: f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
            for name, leaf in named(tree).items()
        }

    saved, expected = described(saved), described(expected)
    return [
        f"{name} is {saved.get(name, 'missing')}, not {expected.get(name, 'expected')}"
        for name in sorted(saved.keys() | expected.keys())
        if saved.get(name) != expected.get(name)
    ]


def discard_debris(run_dir: Path) -> None:
    """Removes what a save or a removal that was cut short left behind."""
    for path in (Path(run_dir) / "checkpoints").glob("*"):
        if path.suffix in (".saving", ".deleting") and path.is_dir():
            shutil.rmtree(path)


def set_aside(run_dir: Path, step: int) -> Path:
    """Renames a damaged checkpoint, so that its step can be saved again."""
    folder = manifest.folder_of(run_dir, step)
    aside, number = folder.with_name(f"{step}.damaged"), 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{step}.damaged-{number}")
    os.rename(folder, aside)
    return aside
