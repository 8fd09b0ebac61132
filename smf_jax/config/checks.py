"""The error for a user's mistake, and the checks that raise it."""

import math
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A mistake in the user's input or files, described in one line."""

    def __init__(self, message: str):
        # Quoted file content may span several lines.
        super().__init__(" ".join(message.splitlines()))


def require(holds: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `holds`."""
    if not holds:
        raise ConfigError(message)


def require_positive(section: str, config: Any, *names: str) -> None:
    """Raises `ConfigError` unless the named fields are finite and above 0."""
    for name in names:
        value = getattr(config, name)
        holds = value > 0 and math.isfinite(value)
        require(holds, f"{section}.{name}={value} must be above 0 and finite")


def require_not_negative(section: str, config: Any, *names: str) -> None:
    """Raises `ConfigError` unless the named fields are finite and 0 or more."""
    for name in names:
        value = getattr(config, name)
        holds = value >= 0 and math.isfinite(value)
        require(holds, f"{section}.{name}={value} must be finite and not negative")


def require_seed(section: str, config: Any) -> None:
    """Raises `ConfigError` unless `seed` is one that every generator accepts."""
    holds = 0 <= config.seed < 2**32
    require(holds, f"{section}.seed={config.seed} must lie in 0 .. {2**32 - 1}")


def require_file(key: str, path: str) -> None:
    """Raises `ConfigError` unless the path that a setting names is a file."""
    require(Path(path).is_file(), f"{key}: {path}: no such file")


def require_divisible(name: str, rows: int, grad_accum_steps: int) -> None:
    """Raises `ConfigError` unless gradient accumulation divides a batch evenly."""
    require(
        grad_accum_steps > 0 and rows % grad_accum_steps == 0,
        f"{name}={rows} is not a multiple of grad_accum_steps={grad_accum_steps}",
    )
