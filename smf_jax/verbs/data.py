"""Writes facts and texts as a data set of tensorflow-datasets."""

import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from smf_jax.config import WorldConfig, require
from smf_jax.data.jsonl import read_objects
from smf_jax.data.records import Fact, Text, read_facts, read_texts
from smf_jax.data.world import make_world

WORLD = "world"


def to_tfds(
    source: str,
    directory: str,
    name: str | None,
    patterns: str | None,
    world: WorldConfig,
    console: Console,
) -> Path:
    """Writes a JSONL file of facts or texts, or the synthetic world, as a data set.

    Raises:
      ConfigError: The file is missing or broken, or the data set exists.
    """
    # Here, as no other verb needs it and all would wait for it.
    from smf_jax.data.tfds.write import source_of, write_data_set

    if source == WORLD:
        require(patterns is None, "--patterns is for a file of facts")
        name, splits = name or "smf_world", _world(world)
    else:
        stem = Path(source).name.split(".")[0].lower()
        name = name or re.sub(r"\W", "_", stem)
        splits = {"train": _records(source, patterns)}
    folder = write_data_set(Path(directory), name, splits)
    for split, records in splits.items():
        kind = "facts" if isinstance(records[0], Fact) else "texts"
        console.print(f"{source_of(folder, split)}: {len(records):,} {kind}")
    return folder


def _records(path: str, patterns: str | None) -> Sequence[Fact] | Sequence[Text]:
    _, first = next(read_objects(Path(path)))
    if "answers" in first:
        return read_facts(path, patterns)
    require(
        patterns is None and "text" in first,
        f"{path}: its first row has no answers, so that it is no file of facts"
        + (", which --patterns is for" if "text" in first else ", and no text"),
    )
    return read_texts(path)


def _world(config: WorldConfig) -> dict[str, list[Fact]]:
    """Returns known and new facts with their other questions, as they are trained."""
    world = make_world(config)
    known = [
        fact._replace(wordings=(other.question,))
        for fact, other in zip(world.known, world.known_reworded, strict=True)
    ]
    new = [
        fact._replace(held_out=(other.question,))
        for fact, other in zip(world.new, world.new_held_out, strict=True)
    ]
    return {"known": known, "new": new}
