"""Saving while training goes on; a checkpoint is in its place when it is whole."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from smf_jax import multihost
from smf_jax.checkpoint import manifest
from smf_jax.checkpoint.digest import digests
from smf_jax.checkpoint.load import latest_step, steps
from smf_jax.checkpoint.manifest import OUTPUTS, RUN_FILES, Manifest
from smf_jax.config import ConfigError, SaveConfig


class SaveError(Exception):
    """A checkpoint could not be written; the ones before it are as they were."""


class Saver(NamedTuple):
    """Saves one checkpoint at a time, in the background."""

    save: Callable[[int, dict[str, PyTree], dict[str, Any], dict[str, float]], None]
    check: Callable[[], None]  # raises what the last save raised, if it is over


@contextlib.contextmanager
def saver(run_dir: Path, config: SaveConfig) -> Iterator[Saver]:
    """Yields `save(step, arrays, progress, metrics)`; leaving waits for the last one.

    The arrays may be donated as soon as `save` returns. Their folder gets the name of
    its step by one rename, after its manifest; then older checkpoints go, as `config`
    says.

    Raises:
      SaveError: A save failed. The next `check` or `save` raises it, or leaving.
    """
    pending: list[Future] = []
    with ThreadPoolExecutor(max_workers=1) as thread:

        def settle(wait: bool) -> None:
            if pending and (wait or pending[0].done()):
                pending.pop().result()

        def save(step, arrays, progress, metrics) -> None:
            settle(wait=True)
            contents = digests(arrays)
            folder = manifest.folder_of(run_dir, step)
            with _said_clearly(run_dir, folder):
                beside = folder.with_name(f"{step}.saving")
                beside.mkdir(parents=True, exist_ok=True)
                multihost.barrier(f"save {step}")
                writing = ocp.save_checkpointables_async(beside / "arrays", arrays)
            logged = manifest.log_size(run_dir)

            def finish() -> None:
                with _said_clearly(run_dir, folder):
                    writing.result()
                    if multihost.is_main():
                        record = Manifest(
                            step=step,
                            progress=progress,
                            metrics=metrics,
                            arrays=contents,
                            files=manifest.file_digests(beside),
                            run_files=manifest.digests_of(run_dir, RUN_FILES),
                            outputs=manifest.digests_of(run_dir, OUTPUTS),
                            log=manifest.log_digest(run_dir, logged),
                        )
                        manifest.write(beside, record)
                        os.rename(beside, folder)
                if multihost.is_main():
                    _prune(run_dir, config)

            pending.append(thread.submit(finish))

        yield Saver(save, lambda: settle(wait=False))
        settle(wait=True)
        # A process that left now would be missed while the first one still writes.
        multihost.barrier("saved")


@contextlib.contextmanager
def _said_clearly(run_dir: Path, folder: Path) -> Iterator[None]:
    # tensorstore raises ValueError where the disk is full.
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        shutil.rmtree(folder.with_name(f"{folder.name}.saving"), ignore_errors=True)
        last = latest_step(run_dir)
        left = "there is none before it" if last is None else f"step {last} stands"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SaveError(
            f"checkpoint {folder} could not be written ({reason}); {left}"
        ) from error


def _prune(run_dir: Path, config: SaveConfig) -> None:
    for step in sorted(set(steps(run_dir)) - kept_steps(run_dir, config)):
        folder = manifest.folder_of(run_dir, step)
        # First out of sight: what is half deleted must not look like a checkpoint.
        gone = folder.with_name(f"{step}.deleting")
        os.rename(folder, gone)
        shutil.rmtree(gone)


def kept_steps(run_dir: Path, config: SaveConfig) -> set[int]:
    """Returns the steps whose checkpoints are kept."""
    there = steps(run_dir)
    kept = set(there[-config.keep :])
    if config.keep_every:
        kept |= {step for step in there if step % config.keep_every == 0}
    if config.best is not None:
        sign = 1 if config.best == "loss" else -1
        scores = [
            (sign * metrics[config.best], -step)  # of equally good ones the latest
            for step in there
            if config.best in (metrics := _metrics(run_dir, step))
        ]
        kept |= {-step for _, step in sorted(scores)[:1]}
    return kept


def _metrics(run_dir: Path, step: int) -> dict[str, float]:
    try:
        return manifest.read(run_dir, step).metrics
    except ConfigError:  # damaged: not the best, and no reason to stop training
        return {}
