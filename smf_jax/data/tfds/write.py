"""Writes facts and texts as a data set of tensorflow-datasets, in ArrayRecord."""

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from smf_jax.atomic import name_file
from smf_jax.config import PREFIX, require
from smf_jax.data.records import Fact, Text

FIRST_VERSION = "1.0.0"
Records = Sequence[Fact] | Sequence[Text]


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds a data set from records, in their order."""

    VERSION = tfds.core.Version(FIRST_VERSION)
    RELEASE_NOTES = {FIRST_VERSION: "As the records were."}  # noqa: RUF012 - of the base class

    def __init__(self, name: str, splits: Mapping[str, Records], data_dir: Path):
        self.name, self._splits = name, splits
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        first = next(iter(self._splits.values()))[0]
        text = tfds.features.Text()
        features = {
            key: text if isinstance(value, str) else tfds.features.Sequence(text)
            for key, value in first._asdict().items()
        }
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(
            builder=self, features=features, disable_shuffling=True
        )

    def _split_generators(self, dl_manager) -> dict:
        return {split: self._generate_examples(split) for split in self._splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index, record in enumerate(self._splits[split]):
            yield index, record._asdict()


def write_data_set(directory: Path, name: str, splits: Mapping[str, Records]) -> Path:
    """Writes records as `DIRECTORY/NAME/1.0.0`, and returns this folder.

    The folder appears complete, by one rename.

    Raises:
      ConfigError: The name cannot be one, there are no records, or the folder exists.
    """
    require(
        re.fullmatch("[a-z][a-z0-9_]*", name) is not None,
        f"{name!r} cannot name a data set: use lower-case letters, digits and _, a "
        "letter first (--name)",
    )
    for split, records in splits.items():
        require(len(records) > 0, f"split {split!r} has no records")
    target = directory / name
    require(
        not target.exists(),
        f"{target} exists: choose another --name or directory, or remove it",
    )
    tfds.disable_progress_bar()
    with name_file(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=directory) as partial:
            with contextlib.redirect_stdout(io.StringIO()):  # nothing is downloaded
                Builder(name, splits, Path(partial)).download_and_prepare()
            os.rename(Path(partial, name), target)
    return target / FIRST_VERSION


def source_of(folder: Path, split: str) -> str:
    """Returns the name by which a written split is read."""
    return f"{PREFIX}{folder}:{split}"
