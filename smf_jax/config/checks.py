"""The error of a user's mistake, and the checks that raise it."""

from typing import Any


class ConfigError(ValueError):
    """A mistake in what the user typed or in a file the user named."""


def require(holds: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `holds`."""
    if not holds:
        raise ConfigError(message)


def require_positive(section: str, config: Any, *names: str) -> None:
    """Raises `ConfigError` unless the named numbers of a section are above 0."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{section}.{name}={value} must be above 0")


def require_not_negative(section: str, config: Any, *names: str) -> None:
    """Raises `ConfigError` if one of the named numbers of a section is below 0."""
    for name in names:
        value = getattr(config, name)
        require(value >= 0, f"{section}.{name}={value} must not be negative")
