"""Reads facts and texts from a data set of tensorflow-datasets, row by row."""

from collections.abc import Iterator

import grain
from tensorflow_datasets.core.dataset_builder import DatasetBuilder
from tensorflow_datasets.core.file_adapters import FileFormat

from smf_jax.config import ConfigError, Kind, parse_data_set, require
from smf_jax.data.tfds.fields import choose_fields, to_row
from smf_jax.data.tfds.find import READ_ERRORS, find

# Decoding holds the lock of the interpreter: threads would not read faster.
READ = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


def read_data_set(
    source: str, kind: Kind, fields: str | None = None
) -> Iterator[tuple[str, dict]]:
    """Yields the position, as `tfds:NAME:SPLIT#ROW`, and the row of each example.

    The order is that of the data set. A row without an id is named by its position.
    TensorFlow is not needed, nor the code that made the data set.

    Raises:
      ConfigError: There is no such data set or split, it is damaged, or its fields
        hold nothing of this kind.
    """
    parts = parse_data_set(source)
    builder = find(source, parts)
    info = builder.info
    split = parts.split or _only_split(source, list(info.splits))
    _require_readable(source, builder, split)
    chosen = choose_fields(source, info.name, info.features, kind, fields)
    about = source.removesuffix(f":{parts.split}") + f":{split}"
    name = f"{parts.name or info.name}:{split}"
    try:
        rows = grain.MapDataset.source(builder.as_data_source(split=split))
        for index, example in enumerate(rows.to_iter_dataset(READ)):
            row = to_row(f"{about}#{index}", chosen, example)
            yield f"{about}#{index}", {"id": f"{name}#{index}"} | row
    except ConfigError:
        raise
    except READ_ERRORS as error:
        raise ConfigError(f"{about} is damaged, or not readable: {error}") from error


def _only_split(source: str, names: list[str]) -> str:
    require(
        "train" in names or len(names) == 1,
        f"{source}: name one of its splits ({', '.join(names)}), as in "
        f"{source}:{names and names[0]}",
    )
    return "train" if "train" in names else names[0]


def _require_readable(source: str, builder: DatasetBuilder, split: str) -> None:
    stored = builder.info.available_file_formats()
    formats = ", ".join(each.value for each in stored) or "nothing"
    require(
        bool(stored & FileFormat.with_random_access()),
        f"{source}: {builder.data_dir} is stored as {formats}, which cannot be read "
        "without TensorFlow: convert it where that is installed, by tfds "
        f"convert_format --dataset_version_dir={builder.data_dir} "
        "--out_file_format=array_record",
    )
    try:
        count = builder.info.splits[split].num_examples
    except READ_ERRORS as error:
        reason = str(error).splitlines()[-1]
        raise ConfigError(f"{source}: split {split!r}: {reason}") from error
    require(count > 0, f"{source}: split {split!r} has no examples")
