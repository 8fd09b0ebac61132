"""The names of facts and texts: a file, or a data set of tensorflow-datasets."""

import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

from smf_jax.config.checks import ConfigError, require, require_file

Kind = Literal["facts", "texts"]
PREFIX = "tfds:"
_SPLIT = r"(:(?P<split>\w[\w-]*(\[[^\]/]*\])?(\+\w[\w-]*(\[[^\]/]*\])?)*))?"
_NAMED = re.compile(r"(?P<name>\w+(/[\w.+-]+)?)(:(?P<version>\d+\.\d+\.\d+))?" + _SPLIT)
_FOLDER = re.compile(r"(?P<folder>[/.~].*?|[^:]+/\d+\.\d+\.\d+)" + _SPLIT)
# What a row is read from: as in a JSONL file.
FACT_KEYS = tuple(
    "question answers statements wordings held_out subject relation".split()
)
TEXT_KEYS = ("text",)
FIELD_KEYS = ("id", *FACT_KEYS, *TEXT_KEYS)


class DataSet(NamedTuple):
    """A data set of tensorflow-datasets, or the folder of a prepared one."""

    name: str | None  # NAME or NAME/CONFIG; None: a folder
    version: str | None  # None: the newest
    folder: str | None
    split: str | None  # with its slice, if it has one; None: train, or the only one


def is_data_set(source: str | Path) -> bool:
    """Returns whether a source names a data set, not a file."""
    return str(source).startswith(PREFIX)


def parse_data_set(source: str) -> DataSet:
    """Returns the parts of `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`.

    What starts with `/`, `.` or `~`, or ends in a version, `NAME/1.0.0`, is the folder
    of a prepared data set: `tfds:FOLDER[:SPLIT]`.

    Raises:
      ConfigError: It has another form.
    """
    rest = source.removeprefix(PREFIX)
    found = _FOLDER.fullmatch(rest) or _NAMED.fullmatch(rest)
    if found is None:
        raise ConfigError(
            f"{source}: not of the form tfds:NAME[/CONFIG][:VERSION][:SPLIT] or "
            "tfds:FOLDER/VERSION[:SPLIT], such as tfds:squad:train[:10%]"
        )
    parts = found.groupdict()
    return DataSet(*(parts.get(field) for field in DataSet._fields))


def path_of(source: str) -> Path | None:
    """Returns the file or folder of a source; None: it is named by tfds alone."""
    if not is_data_set(source):
        return Path(source)
    folder = parse_data_set(source).folder
    return None if folder is None else Path(folder).expanduser()


def with_path(source: str, path: Path) -> str:
    """Returns a source whose file or folder is elsewhere."""
    if not is_data_set(source):
        return str(path)
    split = parse_data_set(source).split
    return f"{PREFIX}{path}" + (f":{split}" if split else "")


def short_name(source: str) -> str:
    """Returns a name of a source that can be a part of a file's name."""
    if not is_data_set(source):
        return Path(source).name.split(".")[0]
    name, version, folder, split = parse_data_set(source)
    if folder is not None:
        name = "/".join(Path(folder).parts[-2:])
    parts = filter(None, (name, version, split))
    return re.sub(r"\W+", "-", "-".join(parts)).strip("-")


def data_dir() -> Path:
    """Returns where prepared data sets are, as tensorflow-datasets itself chooses."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def require_source(key: str, source: str) -> None:
    """Raises `ConfigError` unless a setting names a file, or has the form of tfds."""
    if is_data_set(source):
        parse_data_set(source)
    else:
        require_file(key, source)


def parse_fields(fields: str) -> dict[str, str]:
    """Returns the feature of each key in `question=FIELD,answers=FIELD`.

    Raises:
      ConfigError: It has another form, an unknown key, or a key twice.
    """
    found = {}
    for part in fields.split(","):
        key, equals, field = (each.strip() for each in part.partition("="))
        require(
            equals != "" and field != "" and key in FIELD_KEYS and key not in found,
            f"fields={fields}: {part!r} is not KEY=FIELD, with each KEY once, of "
            f"{', '.join(FIELD_KEYS)}",
        )
        found[key] = field
    return found


def require_fields(fields: str | None, *sources: str | None) -> None:
    """Raises `ConfigError` unless fields have the right form, and a use."""
    if fields is not None:
        parse_fields(fields)
        require(
            any(source is not None and is_data_set(source) for source in sources),
            f"fields={fields} are for a data set tfds:NAME: a file has keys of its own",
        )
