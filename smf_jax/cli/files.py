"""Configuration files, with what the command line changes of them."""

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from smf_jax.config import ConfigError, MeshConfig, require

EVERY = "smf {verb} configs/NAME.py --help tells every setting, as it is there."
# What the Python of a configuration file may run into.
MISTAKES = (
    *(SyntaxError, ImportError, NameError, TypeError, AttributeError),
    *(ArithmeticError, LookupError, ValueError, OSError),
)


def load_config(kind: type, verb: str, arguments: Sequence[str]) -> tuple[Any, Any]:
    """Returns the configuration of a Python file with its overrides, and the `Resume`.

    Raises:
      ConfigError: The file is missing or defines no `config()` of this kind.
    """
    if not arguments or arguments[0].startswith("-"):
        if "--help" in arguments:
            _parse(kind, verb, None, ["--help"])
        raise ConfigError(f"name a configuration file: smf {verb} configs/NAME.py")
    default = read_config(Path(arguments[0]), (kind,), verb)
    return _parse(kind, verb, default, arguments[1:])


def read_config(path: Path, kinds: Sequence[type], verb: str) -> Any:
    """Returns the configuration of a Python file.

    Raises:
      ConfigError: The file is missing, does not run, or defines no `config()` of one of
        these kinds.
    """
    require(path.is_file(), f"{path}: no such configuration file")
    try:
        namespace = runpy.run_path(str(path))
        default = namespace["config"]() if "config" in namespace else None
    except ConfigError:
        raise
    except MISTAKES as error:
        raise ConfigError(f"{path} does not run: {error}") from error
    require("config" in namespace, f"{path} defines no config()")
    require(
        isinstance(default, tuple(kinds)),
        f"{path} is a {type(default).__name__}, but `smf {verb}` takes a "
        f"{' or '.join(kind.__name__ for kind in kinds)}",
    )
    return default


def mesh_of(arguments: Sequence[str]) -> MeshConfig:
    """Returns the devices that the run which is named first is for, if it is a run."""
    from smf_jax.runs.files import CONFIG
    from smf_jax.runs.record import lineage_of, read_record

    run_dir = Path(arguments[0]) if arguments else Path()
    if not (run_dir / CONFIG).is_file():
        return MeshConfig()
    return lineage_of(read_record(run_dir)).mesh


def shown(kind: type, default: Any) -> Any:
    """Returns a configuration's type as tyro takes it, left out without a file of it.

    What a setting would be without a file is in nobody's mind.
    """
    if default is None:
        return tyro.conf.Suppress[Any]
    return Annotated[kind, tyro.conf.arg(name="")]


def _parse(kind: type, verb: str, default: Any, arguments: Sequence[str]) -> Any:
    def options(
        config: shown(kind, default) = default,
        resume: Literal["auto", "never", "must"] = "auto",
        allow_fallback: bool = False,
    ):
        """Train.

        Args:
          config: As a configuration file says, and as is said here.
          resume: Go on with an interrupted run (auto), refuse to (never), or demand
            that there is one (must).
          allow_fallback: Go on from an older checkpoint where the latest is damaged.
        """
        return config, resume, allow_fallback

    config, resume, allow_fallback = tyro.cli(
        options,
        args=list(arguments),
        prog=f"smf {verb} CONFIG",
        description=f"{kind.__doc__}\n\n{EVERY.format(verb=verb)}\n\n"
        f"Example: smf {verb} configs/NAME.py",
        config=(tyro.conf.AvoidSubcommands,),
    )
    from smf_jax.runs.open import Resume

    return config, Resume(resume, allow_fallback)
