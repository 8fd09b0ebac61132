"""The verb that writes data sets of tensorflow-datasets."""

from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.console import Console

from smf_jax.cli.options import HELP, LIST, parse
from smf_jax.config import WorldConfig, require

ACTION = "to-tfds"


def data(arguments: Sequence[str], console: Console) -> None:
    """Writes facts or texts as a data set of tensorflow-datasets."""
    has_action = arguments[:1] == [ACTION]
    lists = bool(HELP & {*arguments}) or arguments[:1] == LIST[:1]
    require(has_action or lists, f"use smf data {ACTION} FILE DIRECTORY")

    def options(
        file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")],
        directory: Annotated[
            tyro.conf.Positional[str], tyro.conf.arg(metavar="DIRECTORY")
        ],
        /,
        name: str | None = None,
        patterns: str | None = None,
        world: WorldConfig = WorldConfig(),  # noqa: B008 - frozen
    ):
        """Write FILE as the data set DIRECTORY/NAME/1.0.0, in ArrayRecord and in order.

        Example: smf data to-tfds facts.jsonl ~/tensorflow_datasets

        Args:
          file: JSONL(.gz) of facts or texts; world: the synthetic world
          directory: of data sets; TFDS_DATA_DIR, to use this one by its name
          name: of the data set; None: as the file, or smf_world
          patterns: JSONL(.gz) of patterns by relation, for wordings of facts
          world: size and seed of the synthetic world
        """
        return file, directory, name, patterns, world

    settings = parse(options, f"data {ACTION}", arguments[has_action:])
    from smf_jax.verbs.data import to_tfds

    to_tfds(*settings, console)
