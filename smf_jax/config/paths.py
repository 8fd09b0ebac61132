"""The files that a configuration names, so that a record of it finds them again."""

import dataclasses
from typing import Any

from smf_jax.config.source import path_of, with_path

PATHS = ("run_dir", "base", "facts", "patterns", "background")


def with_absolute_paths(config: Any) -> Any:
    """Returns a configuration whose files and runs are found from any directory."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in PATHS and value is not None:
            path = path_of(value)  # a data set of the catalogue has none
            if path is not None:
                changes[field.name] = with_path(value, path.absolute())
        elif field.name == "data" and value is not None:
            changes[field.name] = with_absolute_paths(value)
    return dataclasses.replace(config, **changes)
