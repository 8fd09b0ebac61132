"""The tokenizer of a Hugging Face model: its ends of an answer, BOS, chat template."""

import json
from pathlib import Path
from typing import Any, Literal

from smf_jax.config import ConfigError, require
from smf_jax.data.chat_template import ChatTemplate
from smf_jax.data.prompts import turn_end
from smf_jax.data.tokenizer import Tokenizer, control_tokens, parse_tokenizer
from smf_jax.hf import source
from smf_jax.hf.config import split_config
from smf_jax.hf.files import shorten
from smf_jax.hf.open import open_source

Bos = Literal["auto", "yes", "no"]


def read_tokenizer(
    path: str | Path | source.Source, vocab_size: int | None = None, bos: Bos = "auto"
) -> tuple[Tokenizer, list[str]]:
    """Loads the tokenizer of a model, and returns it with notes for the user.

    Every `eos` that a file of the model names ends an answer. Texts and answers are
    trained to end as a turn of the chat template does, or else as the first of these
    says: `generation_config.json`, `tokenizer_config.json`, `config.json`. BOS is what
    `tokenizer.json` puts before a text, unless `bos` says otherwise. `vocab_size` is
    the model's.

    Raises:
      ConfigError: There is no `tokenizer.json`, it is broken, or no file names EOS.
    """
    opened = open_source(path)
    text = opened.text(source.TOKENIZER)
    require(
        text is not None,
        f"{opened.path} holds no {source.TOKENIZER}: save its tokenizer with "
        "transformers, whose save_pretrained writes one",
    )
    names = (source.CONFIG, source.GENERATION_CONFIG)
    names += (source.TOKENIZER_CONFIG, source.SPECIAL_TOKENS)
    read = {name: source.read_json(opened, name) or {} for name in names}
    config = read[source.TOKENIZER_CONFIG]
    special = _special_tokens(config, read[source.SPECIAL_TOKENS])
    ends = _named_ends(read, special)
    first = next((tokens[0] for tokens in ends.values() if tokens), None)
    require(
        first is not None,
        f"{opened.path}: none of {', '.join(ends)} names the EOS token",
    )
    tokenizer = parse_tokenizer(text, opened.path / source.TOKENIZER, first)
    notes = []
    tokenizer = _with_controls(tokenizer, special, notes)
    tokenizer = _with_bos(opened.path, tokenizer, bos, config, special, notes)
    tokenizer = _with_template(tokenizer, source.carried_files(opened), notes)
    tokenizer = _with_ends(tokenizer, ends, notes)
    return _with_limit(tokenizer, vocab_size, notes), notes


def template_of(carried: dict[str, str]) -> ChatTemplate | None:
    """Returns the chat template among a model's small files, if one can be used."""
    template = _read_template(carried)
    return None if template is None or _fault(template) else template


def _fault(template: ChatTemplate) -> str:
    """Returns why a template cannot be used, or nothing."""
    try:
        template.render([("question", "answer")])
        template.render([], "question")
    except ConfigError as error:
        return str(error)
    return ""


def _read_template(carried: dict[str, str]) -> ChatTemplate | None:
    config, more = (
        json.loads(carried.get(name, "{}"))
        for name in (source.TOKENIZER_CONFIG, source.SPECIAL_TOKENS)
    )
    template = carried.get(source.CHAT_TEMPLATE, config.get("chat_template"))
    if isinstance(template, list):  # several, by name
        templates = [each for each in template if isinstance(each, dict)]
        named = (t.get("template") for t in templates if t.get("name") == "default")
        template = next(named, None)
    if not isinstance(template, str):
        return None
    return ChatTemplate(template, tuple(sorted(_special_tokens(config, more).items())))


def _special_tokens(config: dict[str, Any], more: dict[str, Any]) -> dict[str, str]:
    """Returns the special tokens that two files name, such as "eos_token"."""
    if "added_tokens_decoder" not in config:  # older models have a file for them
        config = config | more
    tokens = {name: _content(value) for name, value in config.items()}
    return {n: token for n, token in tokens.items() if n.endswith("_token") and token}


def _content(token: Any) -> str | None:
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) and token else None


def _named_ends(
    read: dict[str, dict[str, Any]], special: dict[str, str]
) -> dict[str, list[int | str]]:
    """Returns the tokens that end a text, or their ids, by the file that names them."""

    def ids_of(content: dict[str, Any]) -> list[int]:
        ids = content.get("eos_token_id")
        ids = ids if isinstance(ids, list) else [ids]
        return [each for each in ids if type(each) is int]

    token = special.get("eos_token")
    return {
        source.GENERATION_CONFIG: ids_of(read[source.GENERATION_CONFIG]),
        source.TOKENIZER_CONFIG: [] if token is None else [token],
        source.CONFIG: ids_of(split_config(read[source.CONFIG])[0]),
    }


def _with_ends(
    tokenizer: Tokenizer, named: dict[str, list[int | str]], notes: list[str]
) -> Tokenizer:
    ends: dict[int, list[str]] = {}  # the files that name each
    known = set(tokenizer.rules.get_vocab().values())
    for name, tokens in named.items():
        for token in tokens:
            id = tokenizer.rules.token_to_id(token) if isinstance(token, str) else token
            if id not in known:
                notes.append(
                    f"{name} names {token!r} as EOS, which is no token: left out"
                )
                continue
            ends.setdefault(id, []).append(name)
    turn = None if tokenizer.template is None else turn_end(tokenizer)
    eos = turn if turn in ends else tokenizer.eos
    others = tuple(id for id in ends if id != eos)
    if others:
        told = "; ".join(
            f"{tokenizer.rules.id_to_token(id)} ({', '.join(names)})"
            for id, names in ends.items()
        )
        why = ", as the chat template ends a turn" if eos == turn else ""
        notes.append(
            f"several tokens end an answer: {told}; teaching trains "
            f"{tokenizer.rules.id_to_token(eos)}{why}"
        )
    return tokenizer._replace(eos=eos, other_ends=others)


def _with_template(
    tokenizer: Tokenizer, carried: dict[str, str], notes: list[str]
) -> Tokenizer:
    template = _read_template(carried)
    fault = "" if template is None else _fault(template)
    if fault:
        notes.append(f"{fault}: the model can be asked by plain prompts only")
    return tokenizer._replace(template=None if fault else template)


def _with_controls(
    tokenizer: Tokenizer, special: dict[str, str], notes: list[str]
) -> Tokenizer:
    """Returns a tokenizer that has the special tokens of other files as such."""
    vocabulary, known = tokenizer.rules.get_vocab(), control_tokens(tokenizer)
    named = special.values()
    unmarked = [token for token in named if token in vocabulary and token not in known]
    if not unmarked:
        return tokenizer
    tokenizer.rules.add_special_tokens(unmarked)
    notes.append(
        f"{source.TOKENIZER} has {shorten(unmarked)} as text, and other files as "
        "special tokens: taken as those"
    )
    return tokenizer._replace(file=None)  # written with the marks


def _with_bos(
    path: Path,
    tokenizer: Tokenizer,
    bos: Bos,
    config: dict[str, Any],
    special: dict[str, str],
    notes: list[str],
) -> Tokenizer:
    wanted, does = config.get("add_bos_token"), bool(tokenizer.bos)
    if bos == "no":
        return tokenizer._replace(bos=())
    if bos == "yes" and not does:
        token = special.get("bos_token")
        id = None if token is None else tokenizer.rules.token_to_id(token)
        require(
            id is not None,
            f"{path / source.TOKENIZER_CONFIG} names no bos_token of the vocabulary, "
            "so there is none to add (--bos yes)",
        )
        return tokenizer._replace(bos=(id,))
    if bos == "auto" and isinstance(wanted, bool) and wanted != does:
        notes.append(
            f"{source.TOKENIZER_CONFIG} says add_bos_token={str(wanted).lower()}, but "
            f"{source.TOKENIZER} puts {'a' if does else 'no'} BOS token before a text: "
            f"done as {source.TOKENIZER} says (--bos yes|no decides)"
        )
    return tokenizer


def _with_limit(
    tokenizer: Tokenizer, vocab_size: int | None, notes: list[str]
) -> Tokenizer:
    if vocab_size is None or tokenizer.num_tokens <= vocab_size:
        return tokenizer
    vocabulary = tokenizer.rules.get_vocab().items()
    unknown = [repr(token) for token, id in vocabulary if id >= vocab_size]
    require(
        max(*tokenizer.bos, *tokenizer.ends, 0) < vocab_size,
        f"the tokens around a text are beyond the {vocab_size} tokens that the model "
        "knows (vocab_size)",
    )
    notes.append(
        f"the model knows {vocab_size} tokens, and the tokenizer has more: texts with "
        f"{shorten(unknown)} are refused"
    )
    return tokenizer._replace(vocab_size=vocab_size)
