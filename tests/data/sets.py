"""Prepared data sets of tensorflow-datasets, small ones, as its own builders write."""

import contextlib
import io
from pathlib import Path

import tensorflow_datasets as tfds

# One example of each data set of the table, with all features of its builder.
EXAMPLES = {
    "natural_questions_open": {"question": "who ?", "answer": ["Ada", "A."]},
    "trivia_qa": {
        "question": "who ?",
        "question_id": "t1",
        "question_source": "",
        "entity_pages": [],
        "search_results": [],
        "answer": {
            "value": "Ada",
            "aliases": ["A.", "Ada"],
            "matched_wiki_entity_name": "",
            "normalized_aliases": [],
            "normalized_matched_wiki_entity_name": "",
            "normalized_value": "",
            "type": "",
        },
    },
    "web_questions": {"question": "who ?", "url": "", "answers": ["Ada", "A."]},
    "gsm8k": {
        "question": "2 + 3 ?",
        "answer": "2 + 3 = 5\n#### 5",
        "annotation": "2 + 3 = 5\n",
        "short_answer": "5",
    },
    "hellaswag": {
        "context": "She falls",
        "endings": ["up.", "in.", "down.", "out."],
        "label": 2,
        "activity_label": "",
        "split_type": "",
        "source_id": "",
    },
    "ai2_arc": {
        "id": "a1",
        "question": "who ?",
        "answerKey": "C",
        "choices": {"text": ["Eve", "Ada"], "label": ["A", "C"]},
    },
    "piqa": {
        "id": "p1",
        "goal": "Boil it",
        "sol1": "Ice.",
        "sol2": "Fire.",
        "label": 1,
    },
    "squad": {
        "id": "s1",
        "title": "",
        "context": "It was Ada, called A.",
        "question": "who ?",
        "answers": {"text": ["Ada", "A."], "answer_start": [7, 19]},
    },
    "wikipedia": {"title": "", "text": "A long text."},
    "lm1b": {"text": "A line ."},
}


def prepare(builder, examples: list[dict]) -> Path:
    """Prepares a data set from other examples, and returns its folder.

    Nothing is downloaded; its features and its folder are what they always are.
    """
    builder._split_generators = lambda dl_manager: {"train": enumerate(examples)}
    download = tfds.download.DownloadConfig(try_download_gcs=False)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=download)
    return Path(builder.data_dir)


def of_catalogue(name: str, data_dir: Path, examples: list[dict]) -> Path:
    """Prepares a data set by its name, from other examples, and returns its folder."""
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    return prepare(builder, examples)


class Other(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set that no table knows."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, features: dict, data_dir: Path):
        self._features = features
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self):
        features = tfds.features.FeaturesDict(self._features)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        raise NotImplementedError

    def _generate_examples(self):
        raise NotImplementedError
