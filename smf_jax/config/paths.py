"""The files that a configuration names, so that a record of it finds them again."""

import dataclasses
from typing import Any

from smf_jax.config.source import path_of, with_path

PATHS = ("run_dir", "base", "facts", "patterns", "background", "texts")


def with_absolute_paths(config: Any) -> Any:
    """Returns a configuration whose files and runs are found from any directory."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None:
            continue
        if field.name in PATHS:
            several = isinstance(value, tuple)
            absolute = tuple(map(_absolute, value)) if several else _absolute(value)
            changes[field.name] = absolute
        elif field.name in ("data", "keep"):
            changes[field.name] = with_absolute_paths(value)
    return dataclasses.replace(config, **changes)


def _absolute(source: str) -> str:
    path = path_of(source)
    if path is None:  # a data set of the catalogue
        return source
    return with_path(source, path.absolute())
