"""Writes the tokenizer of a GGUF file in the form of Hugging Face's files."""

from pathlib import Path
from typing import Any

import numpy as np

from smf_jax.config import require

_NORMAL, _UNKNOWN, _CONTROL, _USER = 1, 2, 3, 4  # types of tokens
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # of a text, turn, message
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")  # of added tokens
_SPACE = "▁"  # of SentencePiece
# How Llama 3 and Qwen 2 split a text: they differ in the length of numbers.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _bytes_of(*steps: dict[str, Any], use_regex: bool) -> dict[str, Any]:
    """Returns the steps by which a text is split before its bytes are spelled."""
    spelled = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps += (spelled | {"use_regex": use_regex},)
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _split(pattern: str) -> dict[str, Any]:
    pattern = {"Regex": pattern}
    return {
        "type": "Split",
        "pattern": pattern,
        "behavior": "Isolated",
        "invert": False,
    }


_GPT2 = _bytes_of(use_regex=True)
_LLAMA3 = _bytes_of(_split(_WORDS % "{1,3}"), use_regex=False)
_QWEN2 = _bytes_of(_split(_WORDS % ""), use_regex=False)
_SMOLLM = _bytes_of({"type": "Digits", "individual_digits": True}, use_regex=True)
# By the name in `tokenizer.ggml.pre`.
_PRE_TOKENIZERS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "smollm": _SMOLLM,
}


def tokenizer_of(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of a `tokenizer.json`.

    Raises:
      ConfigError: It is a tokenizer of another kind, or a part is missing or wrong.
    """
    kind = _key(metadata, "model")
    require(
        isinstance(kind, str) and kind in ("gpt2", "llama"),
        f"{path}: tokenizer {kind!r} (tokenizer.ggml.model) is not supported, only "
        "gpt2 (byte-level BPE) and llama (SentencePiece BPE)",
    )
    tokens, types = _tokens(path, metadata)
    vocab = {token: id for id, token in enumerate(tokens)}
    require(len(vocab) == len(tokens), f"{path}: a token is there twice")
    rules = _byte_level if kind == "gpt2" else _sentence_piece
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": id,
                "content": token,
                **dict.fromkeys(_FLAGS, False),
                "special": types[id] == _CONTROL,
            }
            for token, id in vocab.items()
            if types[id] in (_CONTROL, _USER)
        ],
        "post_processor": _post_processor(path, metadata, tokens),
        **rules(path, metadata, vocab, types),
    }


def tokenizer_config(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of a `tokenizer_config.json`, with the chat template."""
    tokens, _ = _tokens(path, metadata)
    named = {
        name: _token(path, metadata, tokens, key)
        for name, key in _SPECIAL.items()
        if _key(metadata, key) is not None
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": _adds(path, metadata, "bos"),
    }
    template = metadata.get("tokenizer.chat_template", "")
    require(isinstance(template, str), f"{path}: tokenizer.chat_template is no text")
    return config | named | ({"chat_template": template} if template else {})


def generation_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of a `generation_config.json`: the ends of an answer."""
    ends = (_key(metadata, name) for name in _ENDS)
    return {"eos_token_id": [*dict.fromkeys(id for id in ends if type(id) is int)]}


def _key(metadata: dict[str, Any], name: str) -> Any:
    return metadata.get(f"tokenizer.ggml.{name}")


def _tokens(path: Path, metadata: dict[str, Any]) -> tuple[list[str], list[int]]:
    tokens, types = _key(metadata, "tokens"), _key(metadata, "token_type")
    require(
        isinstance(tokens, list)
        and isinstance(types, np.ndarray)
        and len(tokens) == len(types) > 0,
        f"{path}: tokens and token_type of tokenizer.ggml are missing, or differ in "
        "number",
    )
    return tokens, types.tolist()


def _token(path: Path, metadata: dict[str, Any], tokens: list[str], name: str) -> str:
    id = _key(metadata, name)
    require(
        type(id) is int and 0 <= id < len(tokens),
        f"{path}: tokenizer.ggml.{name}={id} is none of the {len(tokens)} tokens",
    )
    return tokens[id]


def _adds(path: Path, metadata: dict[str, Any], which: str) -> bool:
    """Returns whether BOS or EOS is put around a text."""
    says = _key(metadata, f"add_{which}_token")
    require(
        says is None or isinstance(says, bool),
        f"{path}: tokenizer.ggml.add_{which}_token={says} is neither true nor false",
    )
    # What a file means that does not say it: llama.cpp's rule.
    starts = _key(metadata, "model") == "llama" or _key(metadata, "pre") == "llama-bpe"
    return which == "bos" and starts if says is None else says


def _post_processor(path: Path, metadata, tokens) -> dict[str, Any] | None:
    around = {
        which: _token(path, metadata, tokens, f"{which}_token_id")
        for which in ("bos", "eos")
        if _adds(path, metadata, which)
    }
    if not around:
        return None
    steps = {
        which: [{"SpecialToken": {"id": token, "type_id": 0}}]
        for which, token in around.items()
    }
    start, end = steps.get("bos", []), steps.get("eos", [])
    first, second = ([{"Sequence": {"id": id, "type_id": 0}}] for id in "AB")
    return {
        "type": "TemplateProcessing",
        "single": start + first + end,
        "pair": start + first + end + start + second + end,
        "special_tokens": {
            token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]}
            for token in around.values()
        },
    }


def _byte_level(path: Path, metadata, vocab, types) -> dict[str, Any]:
    pre, merges = _key(metadata, "pre"), _key(metadata, "merges")
    require(
        isinstance(pre, str) and pre in _PRE_TOKENIZERS,
        f"{path}: pre-tokenizer {pre!r} (tokenizer.ggml.pre) is not supported, only "
        f"{', '.join(_PRE_TOKENIZERS)}",
    )
    require(
        isinstance(merges, list) and all(merge.count(" ") == 1 for merge in merges),
        f"{path}: tokenizer.ggml.merges is missing, or not pairs of tokens",
    )
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": _PRE_TOKENIZERS[pre],
        "decoder": _GPT2["pretokenizers"][0],
        "model": {
            "type": "BPE",
            "ignore_merges": pre == "llama-bpe",  # a word that is a token stays whole
            "vocab": vocab,
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def _sentence_piece(path: Path, metadata, vocab, types) -> dict[str, Any]:
    scores = _key(metadata, "scores")
    require(
        isinstance(scores, np.ndarray) and len(scores) == len(vocab),
        f"{path}: tokenizer.ggml.scores is missing, or not one number per token",
    )
    prefixed = _key(metadata, "add_space_prefix") is not False
    unknown = next((t for t, id in vocab.items() if types[id] == _UNKNOWN), None)
    spaces = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    steps = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefixed:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": _SPACE,
            "prepend_scheme": "first" if prefixed else "never",
            "split": False,
        },
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": _merges(vocab, types, scores.tolist()),
        },
    }


def _merges(
    vocab: dict[str, int], types: list[int], scores: list[float]
) -> list[list[str]]:
    """Returns every pair of tokens that makes a token, the best token first.

    SentencePiece merges the neighbours that make the token of the highest score.
    """
    made = [token for token, id in vocab.items() if types[id] in (_NORMAL, _USER)]
    made.sort(key=lambda token: -scores[vocab[token]])
    return [
        [token[:at], token[at:]]
        for token in made
        for at in range(1, len(token))
        if token[:at] in vocab and token[at:] in vocab
    ]
