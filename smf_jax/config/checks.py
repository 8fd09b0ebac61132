"""The error of a user's mistake, and the checks that raise it."""

import math
from typing import Any


class ConfigError(ValueError):
    """A mistake in what the user typed or in a file the user named, in one line."""

    def __init__(self, message: str):
        # What it quotes may be of several lines.
        super().__init__(" ".join(message.splitlines()))


def require(holds: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `holds`."""
    if not holds:
        raise ConfigError(message)


def require_positive(section: str, config: Any, *names: str) -> None:
    """Raises `ConfigError` unless the named numbers are finite and above 0."""
    for name in names:
        value = getattr(config, name)
        holds = value > 0 and math.isfinite(value)
        require(holds, f"{section}.{name}={value} must be above 0 and finite")


def require_not_negative(section: str, config: Any, *names: str) -> None:
    """Raises `ConfigError` unless the named numbers are finite and 0 or more."""
    for name in names:
        value = getattr(config, name)
        holds = value >= 0 and math.isfinite(value)
        require(holds, f"{section}.{name}={value} must be finite and not negative")


def require_parts(name: str, rows: int, parts: int) -> None:
    """Raises `ConfigError` unless so many rows can be cut into parts that are alike."""
    require(
        parts > 0 and rows % parts == 0,
        f"{name}={rows} is no multiple of grad_accum_steps={parts}",
    )
