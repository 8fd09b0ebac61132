"""Runs that tests start from, made once for all workers of a test session."""

import dataclasses
import fcntl
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from smf_jax.config import PretrainConfig, SaveConfig
from smf_jax.verbs.pretrain import pretrain
from smf_jax.verbs.usage import collect_usage
from tests import tiny
from tests.compiled import configured, quick

STEPS, SAVE_EVERY, LOG_EVERY, DOCUMENTS = 60, 15, 8, 10


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of the test session, the same one in all its workers."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def make_once(path: Path, make: Callable[[Path], None]) -> Path:
    """Returns a path made by the first process that asks for it; others wait."""
    done = path.with_suffix(".done")
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(path)
            done.touch()
    return path


def base_config(run_dir: Path) -> PretrainConfig:
    """Returns a run with four checkpoints, whose model knows its world a little."""
    config = tiny.pretrain_config(run_dir, STEPS)
    save = SaveConfig(every=SAVE_EVERY, keep=9)
    return dataclasses.replace(config, save=save, log_every=LOG_EVERY)


def plain_config(run_dir: Path) -> PretrainConfig:
    """Returns the same run without a memory."""
    config = base_config(run_dir)
    model = dataclasses.replace(config.model, memory=None)
    return dataclasses.replace(config, model=model)


def make_base(run_dir: Path) -> None:
    """Makes the run of `base_config`, and counts its usage."""
    console = Console(file=io.StringIO())
    with configured(quick(str(run_dir.parent / "compiled"))):
        pretrain(base_config(run_dir), console)
        collect_usage(run_dir, DOCUMENTS, console)


def make_plain(run_dir: Path) -> None:
    """Makes the run of `plain_config`."""
    with configured(quick(str(run_dir.parent / "compiled"))):
        pretrain(plain_config(run_dir), Console(file=io.StringIO()))
