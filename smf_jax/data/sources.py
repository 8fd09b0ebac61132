"""Rows of facts or texts, from a file or from a data set of tensorflow-datasets."""

from collections.abc import Iterator
from pathlib import Path

from smf_jax.config import Kind, data_dir, is_data_set
from smf_jax.data.jsonl import read_objects


def read_rows(
    source: str | Path, kind: Kind, fields: str | None = None
) -> Iterator[tuple[str, dict]]:
    """Yields where each row is, and the row with the keys of a JSONL file.

    Raises:
      ConfigError: The source is missing, empty, broken, or holds no rows of this kind.
    """
    if not is_data_set(source):
        return read_objects(Path(source))
    # Here, as few runs need it and all would wait for it.
    from smf_jax.data.tfds.read import read_data_set

    return read_data_set(str(source), kind, fields)


def prepared_facts() -> list[str]:
    """Returns sources of questions, of data sets that are prepared on this machine."""
    if not data_dir().is_dir():
        return []
    from smf_jax.data.tfds.find import prepared_questions

    return prepared_questions()
