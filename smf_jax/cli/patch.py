"""The verb that shows, applies and reverts the patch of a taught run."""

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import tyro
from rich.console import Console

from smf_jax.cli.options import parse
from smf_jax.config import require

Action = Literal["show", "apply", "revert"]
PATHS = {"show": "PATCH_OR_RUN", "apply": "RUN PATCH OUT", "revert": "RUN OUT"}


def patch(arguments: Sequence[str], console: Console) -> None:
    """Shows, applies or reverts the patch of a taught run."""
    actions = get_args(Action)
    first = arguments[0] if arguments else actions[0]
    require(
        first.startswith("-") or first in actions,
        f"{first!r} is not one of {', '.join(actions)}",
    )
    metavar = tyro.conf.arg(metavar="ACTION")

    def options(
        action: Annotated[tyro.conf.Positional[Action], metavar],
        paths: Annotated[
            tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PATHS")
        ],
        /,
        patch: str | None = None,
    ):
        """Show, apply or revert the patch of a run that SMF has taught.

        smf patch show PATCH_OR_RUN: how many facts and rows, and the model it is for.

        smf patch apply RUN PATCH OUT: the taught run OUT, from the RUN it was over.

        smf patch revert RUN OUT: the model of RUN without its patch, checked bit for
          bit, as the run OUT.

        Example: smf patch revert runs/model_taught runs/model_before

        Args:
          action: show, apply or revert
          paths: as above; OUT must not exist
          patch: revert: patch file; None: patch.safetensors of RUN
        """
        return action, paths, patch

    action, paths, file = parse(options, "patch", arguments)
    usage = f"use smf patch {action} {PATHS[action]}"
    require(len(paths) == len(PATHS[action].split()), f"{len(paths)} paths: {usage}")
    require(
        file is None or action == "revert", f"--patch is for smf patch revert: {usage}"
    )
    from smf_jax.verbs import patch

    if action == "show":
        patch.show(*paths, console)
    elif action == "apply":
        patch.apply(*paths, console)
    else:
        patch.revert(*paths, file, console)
