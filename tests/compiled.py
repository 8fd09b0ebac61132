"""Compiled programs that are kept on disk."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache


def keep_in(folder: str, least_seconds: float = 0.0) -> dict[str, Any]:
    """Returns jax settings that keep programs which compile for so long or longer."""
    return {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": least_seconds,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }


def quick(folder: str) -> dict[str, Any]:
    """Returns jax settings for programs that run too briefly to be optimized."""
    return keep_in(folder) | {"jax_disable_most_optimizations": True}


@contextlib.contextmanager
def configured(settings: dict[str, Any]) -> Iterator[None]:
    """Applies jax settings, and restores the previous ones at the end."""
    before = {name: jax.config.values[name] for name in settings}
    try:
        update(settings)
        yield
    finally:
        update(before)


def update(settings: dict[str, Any]) -> None:
    """Applies jax settings, also to a compilation cache that is in use."""
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
