"""Programs that are compiled once for all that ask for them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache


def keep_in(folder: str, least_seconds: float = 0.0) -> dict[str, Any]:
    """Returns settings of jax that keep what takes as long to compile."""
    return {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": least_seconds,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }


@contextlib.contextmanager
def configured(settings: dict[str, Any]) -> Iterator[None]:
    """Has jax configured so, and as before at the end."""
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        update(settings)
        yield
    finally:
        update(before)


def update(settings: dict[str, Any]) -> None:
    """Configures jax, and has it keep compiled programs where it then says."""
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
