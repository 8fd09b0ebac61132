"""The files of a Hugging Face model: found, checked, read one tensor at a time."""

import contextlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import numpy as np
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open

from smf_jax.config import ConfigError, require

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
TOKENIZER = "tokenizer.json"
# What comes along untouched: how texts are dressed, and how answers are drawn.
CARRIED = (
    *("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"),
    "chat_template.jinja",
)
LARGEST_TEXT = 16 * 2**20  # bytes
FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": "bfloat16"}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class Header(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors calls it


def fetch(source: str, revision: str | None) -> tuple[Path, str | None]:
    """Returns the folder of a model, and its commit if it came from the hub.

    A repository is taken from the hub, or with HF_HUB_OFFLINE=1 from what was taken
    from there before.

    Raises:
      ConfigError: There is no such folder or repository, or it cannot be had.
    """
    if Path(source).is_dir():
        require(
            revision is None,
            f"{source} is a folder, and --revision {revision} is for a repository",
        )
        return Path(source), None
    require(
        not Path(source).exists()
        and bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source)),
        f"{source}: no such folder, and no name of a repository (OWNER/NAME)",
    )
    # Some repositories hold the same parameters a second time, by another name.
    wanted = ["model*.safetensors", INDEX, CONFIG, TOKENIZER, *CARRIED]
    try:
        folder = huggingface_hub.snapshot_download(
            source, revision=revision, allow_patterns=wanted
        )
    except (*HfHubHTTPError.__bases__, OSError, ValueError) as error:
        # The first are the errors of the library that it uses for HTTP.
        reason = str(error).strip().splitlines()
        raise ConfigError(
            f"{source} cannot be had: {reason[0] if reason else type(error).__name__}"
        ) from error
    return Path(folder), Path(folder).name


def read_model_json(folder: Path, name: str) -> dict[str, Any]:
    """Returns what a JSON file of a model holds.

    Raises:
      ConfigError: It is missing, or holds no object.
    """
    path = folder / name
    try:
        content = json.loads(_read_text(folder, name))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    require(isinstance(content, dict), f"{path}: not a JSON object")
    return content


def _read_text(folder: Path, name: str) -> str:
    """Returns a small text of a model; each line ends as it does there."""
    path = folder / name
    require(path.is_file(), f"{path}: no such file")
    # The texts go into a run and out again: none may be a link to something private.
    # The hub's cache links from snapshots/COMMIT into its own repository.
    home = folder.resolve()
    home = home.parents[1] if home.parent.name == "snapshots" else home
    require(
        path.resolve().is_relative_to(home),
        f"{path} is a link that leads out of {home}",
    )
    require(
        path.stat().st_size <= LARGEST_TEXT, f"{path} is above {LARGEST_TEXT} bytes"
    )
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error})") from error


def write_model_json(path: Path, content: Any) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def carried_files(folder: Path) -> dict[str, str]:
    """Returns the small texts that belong to a model, by name.

    Raises:
      ConfigError: One is not UTF-8, too large, or a link to somewhere else.
    """
    there = [name for name in CARRIED if (folder / name).is_file()]
    return {name: _read_text(folder, name) for name in there}


def headers(folder: Path) -> dict[str, Header]:
    """Returns what every tensor of a model is like, by name.

    Raises:
      ConfigError: There are no safetensors, a file is missing or broken, or the index
        does not tell what is in them.
    """
    found = {}
    for path, promised in _shards(folder).items():
        with _opened(path) as file:
            names = set(file.keys())
            for name in names:
                part = file.get_slice(name)
                found[name] = Header(tuple(part.get_shape()), part.get_dtype())
        lacking = (promised or names) - names
        require(
            not lacking,
            f"{path} lacks what {INDEX} says it holds: {_some(lacking)}",
        )
        extra = names - (promised or names)
        require(not extra, f"{path} holds what {INDEX} does not name: {_some(extra)}")
    return found


def tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every tensor of a model by name; one is in memory at a time."""
    for path in _shards(folder):
        with _opened(path) as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)


def _shards(folder: Path) -> dict[Path, set[str] | None]:
    """Returns the files of a model with the tensors that its index places in them."""
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: None}
    if not (folder / INDEX).is_file():
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
        hint = ""
        if pickles:
            hint = (
                f"; {_some(pickles)} may run code when it is read, and is never opened:"
                " save the model as safetensors first"
            )
        raise ConfigError(f"{folder} holds no {WEIGHTS} and no {INDEX}{hint}")
    placed = read_model_json(folder, INDEX).get("weight_map")
    require(
        isinstance(placed, dict) and bool(placed),
        f"{folder / INDEX}: weight_map is no table of tensors",
    )
    shards = defaultdict(set)
    for name, file in placed.items():
        # A plain name, so that no index leads out of the folder.
        plain = isinstance(file, str) and re.fullmatch(r"[\w.-]+\.safetensors", file)
        require(
            bool(plain),
            f"{folder / INDEX} places {name} in {file!r}, which is no file name",
        )
        shards[folder / file].add(name)
    missing = sorted(path.name for path in shards if not path.is_file())
    require(not missing, f"{folder} lacks {_some(missing)}, named by {INDEX}")
    return dict(sorted(shards.items()))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except (SafetensorError, OSError, TypeError) as error:
        raise ConfigError(f"{path} is no safetensors file: {error}") from error


def _some(names) -> str:
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
