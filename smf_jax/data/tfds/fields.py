"""Which features of a data set hold a fact or a text."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow_datasets.core.features import FeaturesDict

from smf_jax.config import (
    FACT_KEYS,
    FIELD_KEYS,
    TEXT_KEYS,
    ConfigError,
    Kind,
    parse_fields,
    require,
)

# A field is the path of a feature, `answers.text`, or several, `sol1+sol2`; of these
# one may be picked by its number, `[label]`, or by its name in a list of names,
# `[answerKey in choices.label]`.
FACTS = {
    "natural_questions_open": {"question": "question", "answers": "answer"},
    "trivia_qa": {
        "id": "question_id",
        "question": "question",
        "answers": "answer.value+answer.aliases",
    },
    "web_questions": {"question": "question", "answers": "answers"},
    # The worked solution, without the number after "####", which is the answer.
    "gsm8k": {
        "question": "question",
        "answers": "short_answer",
        "statements": "annotation",
    },
    "squad": {
        "id": "id",
        "question": "question",
        "answers": "answers.text",
        "statements": "context",
    },
    "hellaswag": {"question": "context", "answers": "endings[label]"},
    "ai2_arc": {
        "id": "id",
        "question": "question",
        "answers": "choices.text[answerKey in choices.label]",
    },
    "piqa": {"id": "id", "question": "goal", "answers": "sol1+sol2[label]"},
}
TEXTS = {"wikipedia": {"text": "text"}, "lm1b": {"text": "text"}}

LISTS = {"answers", "statements", "wordings", "held_out"}
UNKNOWN = "<unk>"  # in place of an answer, in the test split of trivia_qa
_FIELD = re.compile(
    r"(?P<paths>[^\[\]+\s]+(\+[^\[\]+\s]+)*)"
    r"(\[(?P<index>[^\[\]\s]+)( in (?P<names>[^\[\]\s]+))?\])?"
)
_OTHER: dict[Kind, tuple[Kind, str]] = {
    "facts": ("texts", "background"),
    "texts": ("facts", "facts"),
}


def choose_fields(
    source: str, name: str, features: Any, kind: Kind, fields: str | None
) -> dict[str, str]:
    """Returns the field of each key of a row.

    These are the given ones, or else those of the table, or else the features that
    have the names of keys themselves.

    Raises:
      ConfigError: The data set holds the other kind, or lacks the fields.
    """
    require(
        isinstance(features, FeaturesDict), f"{source}: its examples have no fields"
    )
    keys = ("id", *(FACT_KEYS if kind == "facts" else TEXT_KEYS))
    if fields is not None:
        given = parse_fields(fields)
        chosen = {key: given[key] for key in keys if key in given}
        if chosen.keys() - {"id"}:
            for field in chosen.values():
                _require_feature(source, features, field)
            _require_kind(source, chosen, features, kind)
            return chosen
    tables = {"facts": FACTS, "texts": TEXTS}
    listed = tables[kind].get(name)
    if listed is not None and _has_all(features, listed.values()):
        return listed
    known = _paths(features)
    chosen = {key: key for key in keys if key in known}
    other, setting = _OTHER[kind]
    require(
        _is_kind(chosen, kind) or name not in tables[other],
        f"{source} holds {other}, not {kind}: name it as {setting}, or the fields "
        f"of {kind} (--fields {_example(kind)})",
    )
    _require_kind(source, chosen, features, kind)
    return chosen


def _is_kind(chosen: Mapping[str, str], kind: Kind) -> bool:
    if kind == "texts":
        return "text" in chosen
    return "answers" in chosen and bool({"question", "wordings", "subject"} & {*chosen})


def _require_kind(source: str, chosen: Mapping, features: Any, kind: Kind) -> None:
    require(
        _is_kind(chosen, kind),
        f"{source}: which fields hold {kind} is not known; it has "
        f"{', '.join(_paths(features))}: name them (--fields {_example(kind)})",
    )


def _example(kind: Kind) -> str:
    return "question=FIELD,answers=FIELD" if kind == "facts" else "text=FIELD"


def _parse(field: str) -> tuple[list[str], str | None, str | None]:
    found = _FIELD.fullmatch(field)
    if found is None:
        raise ConfigError(
            f"fields: {field!r} is not a FIELD, FIELD+FIELD, FIELD[NUMBER] or "
            "FIELD[NAME in NAMES]"
        )
    return found["paths"].split("+"), found["index"], found["names"]


def _all_paths(field: str) -> list[str]:
    paths, index, names = _parse(field)
    return [*paths, *filter(None, (index, names))]


def _has_all(features: Any, fields: Any) -> bool:
    known = set(_paths(features))
    return all(path in known for field in fields for path in _all_paths(field))


def _require_feature(source: str, features: Any, field: str) -> None:
    known = _paths(features)
    for path in _all_paths(field):
        require(
            path in known,
            f"{source} has no field {path!r}, only {', '.join(known)} (--fields)",
        )


def _paths(features: Any, prefix: str = "") -> list[str]:
    """Returns the paths of all features that hold values."""
    inner = getattr(features, "feature", features)  # of a sequence
    if not isinstance(inner, FeaturesDict):
        return [prefix]
    start = f"{prefix}." if prefix else ""
    return [path for key in sorted(inner) for path in _paths(inner[key], start + key)]


def to_row(where: str, fields: Mapping[str, str], example: Mapping) -> dict:
    """Returns an example with the keys of a JSONL file.

    Raises:
      ConfigError: A value is no text, or several where one is needed, or the right
        choice is missing.
    """
    row: dict[str, Any] = {}
    for key in FIELD_KEYS:
        if key not in fields:
            continue
        values = _read(where, fields[key], example, is_id=key == "id")
        if key in LISTS:
            row[key] = values
            continue
        require(
            len(values) == 1,
            f"{where}: {fields[key]} holds {len(values)} values, and {key} is one",
        )
        row[key] = values[0]
    # A data set has no absent values: what is blank here is absent from a file.
    optional = ["id", "subject", "relation"]
    optional += ["question"] if row.get("wordings") or row.get("subject") else []
    blank = {key for key in optional if row.get(key) == ""}
    return {key: value for key, value in row.items() if key not in blank}


def _read(where: str, field: str, example: Mapping, is_id: bool) -> list[str]:
    paths, index, names = _parse(field)
    values = [each for path in paths for each in _flat(_at(example, path))]
    if index is not None:
        chosen, *more = _flat(_at(example, index))
        require(not more, f"{where}: {index} holds several numbers, in {field}")
        if names is not None:
            listed = _flat(_at(example, names))
            chosen = listed.index(chosen) if chosen in listed else -1
        require(
            isinstance(chosen, int | np.integer) and 0 <= chosen < len(values),
            f"{where}: {field}: the right choice is not given",
        )
        values = [values[chosen]]
    texts = [_text(where, field, value, is_id) for value in values]
    if len(paths) == 1 or index is not None:
        return texts
    # An answer is often one of its aliases, too.
    return [text for text in dict.fromkeys(texts) if text != UNKNOWN]


def _at(example: Any, path: str) -> Any:
    for key in path.split("."):
        example = example[key]
    return example


def _flat(value: Any) -> list:
    if isinstance(value, list | tuple) or (
        isinstance(value, np.ndarray) and value.ndim
    ):
        return [each for part in value for each in _flat(part)]
    return [value.item() if isinstance(value, np.generic | np.ndarray) else value]


def _text(where: str, field: str, value: Any, is_id: bool) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{where}: {field} is not UTF-8: {error}") from error
    if is_id and isinstance(value, int):
        return str(value)
    require(isinstance(value, str), f"{where}: {field} holds {value!r}, and no text")
    return value
