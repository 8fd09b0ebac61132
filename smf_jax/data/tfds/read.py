"""Reads facts and texts from a data set of tensorflow-datasets, row by row."""

from collections.abc import Iterator

import grain
from tensorflow_datasets.core.dataset_builder import DatasetBuilder
from tensorflow_datasets.core.file_adapters import FileFormat

from smf_jax.config import ConfigError, DataSet, Kind, parse_data_set, require
from smf_jax.data.tfds.fields import choose_fields, to_row
from smf_jax.data.tfds.find import READ_ERRORS, find

READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=64)


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
    split = parts.split or _only_split(source, builder)
    examples = _open(source, builder, split)
    chosen = choose_fields(
        source, builder.info.name, builder.info.features, kind, fields
    )
    name = f"{_name(parts, builder)}:{split}"
    about = source.removesuffix(f":{parts.split}") + f":{split}"
    index = -1
    try:
        for index, example in enumerate(examples):
            where = f"{about}#{index}"
            yield where, {"id": f"{name}#{index}"} | to_row(where, chosen, example)
    except ConfigError:
        raise
    except READ_ERRORS as error:
        raise ConfigError(
            f"{about}: damaged or not readable past row {index}: {error}"
        ) from error


def _name(parts: DataSet, builder: DatasetBuilder) -> str:
    return parts.name or builder.info.name


def _only_split(source: str, builder: DatasetBuilder) -> str:
    names = list(builder.info.splits)
    require(
        "train" in names or len(names) == 1,
        f"{source}: name one of its splits, such as {source}:{names and names[0]}; it "
        f"has {', '.join(names) or 'none'}",
    )
    return "train" if "train" in names else names[0]


def _open(source: str, builder: DatasetBuilder, split: str) -> grain.IterDataset:
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
        require(count > 0, f"{source}: split {split!r} has no examples")
        rows = builder.as_data_source(split=split)
    except READ_ERRORS as error:
        if isinstance(error, ConfigError):
            raise
        reason = str(error).splitlines()[-1]
        raise ConfigError(f"{source}: split {split!r}: {reason}") from error
    return grain.MapDataset.source(rows).to_iter_dataset(READ)
