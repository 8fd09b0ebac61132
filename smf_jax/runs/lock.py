"""The lock of a run directory: one writer at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from smf_jax import multihost
from smf_jax.config import ConfigError, require
from smf_jax.runs.files import CONFIG

LOCK = ".lock"


@contextlib.contextmanager
def lock_run_dir(run_dir: str | Path) -> Iterator[Path]:
    """Creates the directory if needed, and locks it against other writers.

    The lock is the operating system's, so it ends with the process that holds it. If
    the body writes no run, the lock file goes, and the directory if it is new.

    Raises:
      ConfigError: Another process holds the lock, or the path is not a directory.
    """
    run_dir = Path(run_dir)
    if not multihost.is_main():
        yield run_dir
        return
    require(
        not run_dir.exists() or run_dir.is_dir(),
        f"{run_dir} exists and is not a directory",
    )
    is_new = not run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except (NotADirectoryError, FileExistsError) as error:
        raise ConfigError(f"{run_dir} lies below a file, not a directory") from error
    with (run_dir / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            require(False, f"{run_dir} is being written by {holder}")
        # The previous holder may have removed the file in between.
        inode = (run_dir / LOCK).exists() and (run_dir / LOCK).stat().st_ino
        require(
            inode == os.fstat(lock.fileno()).st_ino,
            f"{run_dir} is being written by another process",
        )
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        lock.flush()
        try:
            yield run_dir
        finally:
            if not (run_dir / CONFIG).exists():
                (run_dir / LOCK).unlink()
                if is_new and not any(run_dir.iterdir()):
                    run_dir.rmdir()
