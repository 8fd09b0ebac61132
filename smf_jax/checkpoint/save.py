"""Saves checkpoints in the background; each appears complete, by one rename."""

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
    """A checkpoint could not be written; earlier ones are intact."""


class Saver(NamedTuple):
    """Saves one checkpoint at a time, in the background."""

    save: Callable[[int, dict[str, PyTree], dict[str, Any], dict[str, float]], None]
    check: Callable[[], None]  # raises the error of the last save, if it has failed


@contextlib.contextmanager
def saver(run_dir: Path, config: SaveConfig) -> Iterator[Saver]:
    """Yields `save(step, arrays, progress, metrics)`; waits for the last one at exit.

    The arrays may be donated as soon as `save` returns. The manifest is written last;
    then one rename completes the checkpoint, and older ones are removed as `config`
    says.

    Raises:
      SaveError: A save failed. The next `check` or `save` raises it, or the exit.
    """
    pending: list[Future] = []
    with ThreadPoolExecutor(max_workers=1) as thread:

        def finish(wait: bool) -> None:
            if pending and (wait or pending[0].done()):
                pending.pop().result()

        def save(step, arrays, progress, metrics) -> None:
            finish(wait=True)
            array_digests = digests(arrays)
            folder = manifest.folder_of(run_dir, step)
            partial = folder.with_name(f"{step}.saving")
            with _save_errors(run_dir, folder, partial):
                partial.mkdir(parents=True, exist_ok=True)
                multihost.barrier(f"save {step}")
                writing = ocp.save_checkpointables_async(partial / "arrays", arrays)
            log = manifest.log_digest(run_dir)  # before training appends more

            def commit() -> None:
                with _save_errors(run_dir, folder, partial):
                    writing.result()
                    if multihost.is_main():
                        files = manifest.files_below(partial)
                        record = Manifest(
                            step=step,
                            progress=progress,
                            metrics=metrics,
                            arrays=array_digests,
                            files=manifest.file_digests(partial, files),
                            run_files=manifest.file_digests(run_dir, RUN_FILES),
                            outputs=manifest.file_digests(run_dir, OUTPUTS),
                            log=log,
                        )
                        manifest.write(partial, record)
                        os.rename(partial, folder)
                if multihost.is_main():
                    _prune(run_dir, config)

            pending.append(thread.submit(commit))

        yield Saver(save, lambda: finish(wait=False))
        finish(wait=True)
        # Until the main process has written, the others must not exit.
        multihost.barrier("saved")


@contextlib.contextmanager
def _save_errors(run_dir: Path, folder: Path, partial: Path) -> Iterator[None]:
    # tensorstore raises ValueError if the disk is full.
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        last = latest_step(run_dir)
        left = "there is no earlier one" if last is None else f"step {last} is intact"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SaveError(
            f"checkpoint {folder} could not be written ({reason}); {left}"
        ) from error


def _prune(run_dir: Path, config: SaveConfig) -> None:
    for step in sorted(set(steps(run_dir)) - _kept_steps(run_dir, config)):
        folder = manifest.folder_of(run_dir, step)
        # Renamed first: a partly deleted directory must not look like a checkpoint.
        deleting = folder.with_name(f"{step}.deleting")
        os.rename(folder, deleting)
        shutil.rmtree(deleting)


def _kept_steps(run_dir: Path, config: SaveConfig) -> set[int]:
    saved = steps(run_dir)
    kept = set(saved[-config.keep :])
    if config.keep_every:
        kept |= {step for step in saved if step % config.keep_every == 0}
    if config.best is not None:
        sign = 1 if config.best == "loss" else -1
        scores = [
            (sign * metrics[config.best], -step)  # of equal ones the latest
            for step in saved
            if config.best in (metrics := _metrics(run_dir, step))
        ]
        kept |= {-step for _, step in sorted(scores)[:1]}
    return kept


def _metrics(run_dir: Path, step: int) -> dict[str, float]:
    try:
        return manifest.read(run_dir, step).metrics
    except ConfigError:  # damaged: not the best, and no reason to stop training
        return {}
