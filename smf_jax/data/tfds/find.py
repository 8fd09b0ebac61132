"""Finds a prepared data set of tensorflow-datasets, or prepares it."""

import contextlib
import difflib
import itertools
import sys
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

import jax
import tensorflow_datasets as tfds

# These register their data sets when they are imported, the others by themselves.
import tensorflow_datasets.question_answering
import tensorflow_datasets.summarization
import tensorflow_datasets.text
import tensorflow_datasets.text_simplification
import tensorflow_datasets.translate
from google.protobuf.json_format import Error as JsonError
from tensorflow_datasets.core.dataset_builder import DatasetBuilder
from tensorflow_datasets.core.download.util import DownloadError
from tensorflow_datasets.core.file_adapters import FileFormat
from tensorflow_datasets.core.read_only_builder import builder_from_files
from tensorflow_datasets.core.registered import DatasetNotFoundError

from smf_jax.config import PREFIX, ConfigError, DataSet, data_dir, path_of, require

# What reading damaged files may raise, there and in protobuf.
READ_ERRORS = (
    *(OSError, RuntimeError, ValueError, LookupError, TypeError),
    *(AttributeError, ImportError, JsonError),
)
PREPARE_ERRORS = (*READ_ERRORS, AssertionError, DownloadError)
PROBED = "https://storage.googleapis.com"  # beside the source of a data set
# Those that a model can be asked without a text, and splits that have answers.
QUESTIONS = ("natural_questions_open", "trivia_qa", "web_questions")
SPLITS, FIRST_ROWS = ("validation", "test", "train"), 1000
RANDOM_ACCESS = FileFormat.with_random_access()
PATIENCE = 5  # seconds for an answer of the network


def find(source: str, parts: DataSet) -> DatasetBuilder:
    """Returns the reader of a prepared data set; one of the catalogue is prepared.

    Raises:
      ConfigError: There is no such data set, its description is damaged, or it is not
        prepared and cannot be.
    """
    if parts.folder is not None:
        folder = path_of(source)
        require(folder.is_dir(), f"{source}: {folder}: no such folder")
        return _open(source, folder)
    try:
        return _prepared(source, parts)
    except DatasetNotFoundError:
        pass
    _prepare(source, parts)
    return _prepared(source, parts)


def prepared_questions() -> list[str]:
    """Returns the first rows of each data set of questions that is prepared here.

    One that cannot be read is left out.
    """
    sources = []
    for name in QUESTIONS:
        try:
            builder = _prepared(f"{PREFIX}{name}", DataSet(name, None, None, None))
        except (DatasetNotFoundError, ConfigError):
            continue
        splits = [split for split in SPLITS if split in builder.info.splits]
        if splits and builder.info.available_file_formats() & RANDOM_ACCESS:
            count = min(FIRST_ROWS, builder.info.splits[splits[0]].num_examples)
            sources.append(f"{PREFIX}{name}:{splits[0]}[:{count}]")
    return sources


def _open(source: str, folder: Path) -> DatasetBuilder:
    inside = sorted(path.parent for path in folder.glob("*/dataset_info.json"))
    require(
        (folder / "dataset_info.json").is_file(),
        f"{source}: {folder} holds no dataset_info.json: name the folder of a version"
        + (f", such as {inside[-1]}" if inside else ", such as NAME/1.0.0"),
    )
    try:
        builder = tfds.builder_from_directory(folder)
        builder.info.features  # noqa: B018 - reads features.json
        return builder
    except READ_ERRORS as error:
        raise ConfigError(f"{source}: {folder} is damaged: {error}") from error


def _prepared(source: str, parts: DataSet) -> DatasetBuilder:
    version = f":{parts.version}" if parts.version else ""
    try:
        return builder_from_files(parts.name + version, data_dir=data_dir())
    except DatasetNotFoundError:
        raise
    except READ_ERRORS as error:
        raise ConfigError(
            f"{source}: the data set in {data_dir()} is damaged: {error}"
        ) from error


def _prepare(source: str, parts: DataSet) -> None:
    builder = _of_catalogue(source, parts)
    elsewhere = (
        'prepare it elsewhere, by python -c "import tensorflow_datasets as tfds, '
        "tensorflow_datasets.text; "
        f"tfds.builder('{parts.name}').download_and_prepare(file_format="
        f"'array_record')\", and copy ~/tensorflow_datasets/{builder.name} into "
        f"{data_dir()} (TFDS_DATA_DIR)"
    )
    require(
        jax.process_count() == 1,
        f"{source} is not prepared, and several processes do not prepare it: "
        f"{elsewhere}",
    )
    urls = [*itertools.islice(builder.url_infos or (), 1), PROBED]
    require(
        any(map(_answers, urls)),
        f"{source} is not prepared, and {urls[0]} cannot be reached: {elsewhere}",
    )
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    # What the bucket of tensorflow-datasets holds has another format.
    download = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # which answers may be read from
            builder.download_and_prepare(
                download_config=download, file_format="array_record"
            )
    except PREPARE_ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"{source} cannot be prepared here ({reason}): its code may need other "
            f"packages, such as TensorFlow: {elsewhere}"
        ) from error


def _of_catalogue(source: str, parts: DataSet) -> DatasetBuilder:
    name, _, config = parts.name.partition("/")
    known = tfds.list_builders(with_community_datasets=False)
    here = [path.name for path in data_dir().glob("[a-z]*") if path.is_dir()]
    close = difflib.get_close_matches(name, [*known, *here])
    require(
        name in known,
        f"{source}: there is no data set {name!r} in tensorflow-datasets, nor in "
        f"{data_dir()} (TFDS_DATA_DIR)"
        + (f"; close names: {', '.join(close)}" if close else ""),
    )
    configs = list(tfds.builder_cls(name).builder_configs)
    close = difflib.get_close_matches(config, configs, 10, 0) or configs[:10]
    require(
        config == "" or config in configs,
        f"{source}: {name} has no configuration {config!r}"
        + (f"; it has {', '.join(close)}" if configs else ""),
    )
    version = f":{parts.version}" if parts.version else ""
    try:
        return tfds.builder(parts.name + version, data_dir=data_dir())
    except PREPARE_ERRORS as error:
        reason = " ".join(str(error).splitlines()[:3])
        raise ConfigError(f"{source}: {reason}") from error


def _answers(url: str) -> bool:
    """Returns whether a host answers soon; a download would try for minutes."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE):
            return True
    except (urllib.error.HTTPError, HTTPException):  # it answers, if not to this
        return True
    except OSError:
        return False
