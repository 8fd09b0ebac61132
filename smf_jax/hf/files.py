"""The files of a Hugging Face model: located, checked, read tensor by tensor."""

import contextlib
import difflib
import functools
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open

from smf_jax.config import ConfigError, require
from smf_jax.hf.source import CARRIED, CONFIG, TOKENIZER, Headers, Source, read_json

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
GGUF = ".gguf"
MAX_TEXT = 16 * 2**20  # bytes
_POINTER = b"version https://git-lfs.github.com/spec/"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def fetch(source: str, revision: str | None) -> tuple[Path, str | None]:
    """Returns the directory or GGUF file of a model, and its commit in the hub, if any.

    With HF_HUB_OFFLINE=1 a repository is read from the hub's local cache.

    Raises:
      ConfigError: There is no such directory or repository, or no download; or it is
        of a clone without its large files.
    """
    path = Path(source)
    if path.is_dir() or (path.is_file() and path.suffix == GGUF):
        kind = "folder" if path.is_dir() else "file"
        require(
            revision is None,
            f"{source} is a {kind}, and --revision {revision} is for a repository",
        )
        if (path / TOKENIZER).is_file():  # which another library reads
            require_pulled(path / TOKENIZER)
        return path, None
    require(
        not path.exists() and bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source)),
        f"{source}: no such folder{_similar(source)}, and neither a GGUF file nor the "
        "name of a repository (OWNER/NAME)",
    )
    # Other safetensors in a repository may be copies of the same parameters.
    patterns = ["model*.safetensors", INDEX, CONFIG, TOKENIZER, *CARRIED]
    try:
        folder = huggingface_hub.snapshot_download(
            source, revision=revision, allow_patterns=patterns
        )
    except (*HfHubHTTPError.__bases__, OSError, ValueError) as error:
        # The bases are the errors of the HTTP library beneath.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"{source}: no such folder{_similar(source)}, and the hub cannot be "
            f"reached or has no such repository or revision: {reason[0]}"
        ) from error
    return Path(folder), Path(folder).name


def _similar(source: str) -> str:
    """Returns a question after the folder or file that a mistyped path may mean."""
    parent = Path(source).parent
    names = [path.name for path in (*parent.glob("*/"), *parent.glob(f"*{GGUF}"))]
    close = difflib.get_close_matches(Path(source).name, names, n=1)
    return f" (is it {parent / close[0]}?)" if close else ""


def require_pulled(path: Path) -> None:
    """Raises `ConfigError` if a clone holds a pointer in place of a large file."""
    with path.open("rb") as file:
        is_pointer = file.read(len(_POINTER)) == _POINTER
    require(
        not is_pointer,
        f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in "
        f"{path.parent}",
    )


def open_folder(folder: Path) -> Source:
    """Returns the files of a model in a folder."""
    return Source(
        folder,
        functools.partial(_read_text, folder),
        functools.partial(_headers, folder),
        functools.partial(_tensors, folder),
    )


def _read_text(folder: Path, name: str) -> str | None:
    """Returns the content of a small file, line endings as they are."""
    path = folder / name
    if not path.is_file():
        return None
    if name != TOKENIZER:  # which may be large, and is read by another library
        _require_safe(folder, path)
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error.reason})") from error


def _require_safe(folder: Path, path: Path) -> None:
    # Texts are copied into runs and exports, so a link must not lead to private files.
    # In the hub's cache, snapshots/COMMIT links into its own repository.
    root = folder.resolve()
    root = root.parents[1] if root.parent.name == "snapshots" else root
    require(
        path.resolve().is_relative_to(root),
        f"{path} is a link that leads out of {root}: import the folder that it leads "
        f"to, or copy this one with `cp -rL {folder} COPY` and import COPY",
    )
    require_pulled(path)
    require(path.stat().st_size <= MAX_TEXT, f"{path} is above {MAX_TEXT} bytes")


def write_model_json(path: Path, content: Any) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _headers(folder: Path) -> Headers:
    """Returns the shape and the safetensors type of every tensor of a model.

    Raises:
      ConfigError: There are no safetensors, a file is missing or broken, or the index
        does not match the files.
    """
    found = {}
    for path, indexed in _shards(folder).items():
        with _open(path) as file:
            names = set(file.keys())
            for name in names:
                part = file.get_slice(name)
                found[name] = tuple(part.get_shape()), part.get_dtype()
        differing = names ^ (names if indexed is None else indexed)
        require(
            not differing,
            f"{path} holds other tensors than {INDEX} says: {shorten(differing)}",
        )
    return found


def _tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every tensor of a model by name, one at a time."""
    for path in _shards(folder):
        with _open(path) as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)


def _shards(folder: Path) -> dict[Path, set[str] | None]:
    """Returns the safetensors of a model, with their tensors if there is an index."""
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: None}
    if not (folder / INDEX).is_file():
        pickles = [path.name for path in folder.iterdir() if path.suffix in _PICKLES]
        hint = ""
        if pickles:
            hint = (
                f"; {shorten(pickles)} may run code when loaded, so it is never "
                "opened: save the model as safetensors first"
            )
        raise ConfigError(f"{folder} holds no {WEIGHTS} and no {INDEX}{hint}")
    weight_map = read_json(open_folder(folder), INDEX).get("weight_map")
    require(
        isinstance(weight_map, dict) and bool(weight_map),
        f"{folder / INDEX}: weight_map must be an object that is not empty",
    )
    shards = defaultdict(set)
    for name, file in weight_map.items():
        # A plain name, so that no index leads out of the folder.
        plain = isinstance(file, str) and re.fullmatch(r"[\w.-]+\.safetensors", file)
        require(
            bool(plain),
            f"{folder / INDEX} maps {name} to {file!r}, which is not a file name",
        )
        shards[folder / file].add(name)
    missing = [path.name for path in shards if not path.is_file()]
    require(not missing, f"{folder} lacks {shorten(missing)}, named by {INDEX}")
    return dict(sorted(shards.items()))


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        require_pulled(path)
        with safe_open(path, framework="np") as file:
            yield file
    except (SafetensorError, OSError, TypeError) as error:
        raise ConfigError(f"{path} is not a safetensors file: {error}") from error


def shorten(items: Collection[str], separator: str = ", ") -> str:
    """Returns the first five items in order, and how many more there are."""
    more = f"{separator}and {len(items) - 5} more" if len(items) > 5 else ""
    return separator.join(sorted(items)[:5]) + more
