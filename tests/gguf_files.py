"""Small GGUF files, written by the package `gguf`."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.hf.kinds import byte_level, pieces

VOCAB, DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, WIDTH = 320, 256, 512, 2, 8, 4, 32
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CONTROL, USER, NORMAL, UNKNOWN, BYTE = 3, 4, 1, 2, 6  # types of tokens
# Of types that the package does not write: the bytes of a block, where its scales are,
# which are float16, and how large these are for numbers near 0.05.
_BLOCKS = {"Q4_K": (144, (0, 2), 1e-4), "Q6_K": (210, (208,), 2e-5)}


def require_gguf() -> None:
    """Skips the calling module if the extra `gguf` is not installed.

    Raises:
      RuntimeError: It is not, and SMF_REQUIRE_REAL=1 demands it.
    """
    if importlib.util.find_spec("gguf") is not None:
        return
    reason = "the extra `gguf` is not installed"
    if os.environ.get("SMF_REQUIRE_REAL") == "1":
        raise RuntimeError(reason)
    pytest.skip(reason, allow_module_level=True)


def byte_tokens() -> tuple[list[str], list[str]]:
    """Returns the tokens and merges of a small byte-level BPE."""
    model = json.loads(byte_level().to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)[:VOCAB]
    merges = [merge for merge in model["merges"] if "".join(merge) in tokens]
    return tokens, [" ".join(merge) for merge in merges]


def shapes(kind: str, is_tied: bool = True) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of a small model."""
    kv = KV_HEADS * WIDTH
    layer = {
        "attn_norm.weight": (DIM,),
        "attn_q.weight": (HEADS * WIDTH, DIM),
        "attn_k.weight": (kv, DIM),
        "attn_v.weight": (kv, DIM),
        "attn_output.weight": (DIM, HEADS * WIDTH),
        "ffn_norm.weight": (DIM,),
        "ffn_gate.weight": (HIDDEN, DIM),
        "ffn_up.weight": (HIDDEN, DIM),
        "ffn_down.weight": (DIM, HIDDEN),
    }
    if kind == "qwen2":
        layer |= {"attn_q.bias": (HEADS * WIDTH,), "attn_k.bias": (kv,)}
        layer |= {"attn_v.bias": (kv,)}
    tensors = {"token_embd.weight": (VOCAB, DIM), "output_norm.weight": (DIM,)}
    if not is_tied:
        tensors["output.weight"] = (VOCAB, DIM)
    for number in range(LAYERS):
        tensors |= {f"blk.{number}.{name}": shape for name, shape in layer.items()}
    return tensors


def quantize(array: np.ndarray, type_name: str, draws: np.random.Generator):
    """Returns a tensor as bytes of a type, of other numbers if it is a K type."""
    import gguf

    if type_name not in _BLOCKS:
        return gguf.quantize(array, gguf.GGMLQuantizationType[type_name])
    size, places, scale = _BLOCKS[type_name]
    blocks = draws.integers(0, 256, (array.size // 256, size), np.uint8)
    for at in places:
        small = (draws.uniform(1, 2, len(blocks)) * scale).astype(np.float16)
        blocks[:, at : at + 2] = small[:, None].view(np.uint8)
    return blocks.reshape(array.shape[0], -1)


def write(
    path: Path,
    kind: str = "llama",
    type_name: str = "F32",
    is_tied: bool = True,
    change=lambda writer: None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Writes a small random model with a byte-level tokenizer, and returns where.

    `change` may add to the file, and `tensors` holds more tensors.
    """
    import gguf

    draws = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(DIM)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    change(writer)
    if f"{kind}.rope.freq_base" not in writer.kv_data[0]:
        writer.add_rope_freq_base(500.0)
    if "tokenizer.ggml.model" not in writer.kv_data[0]:
        add_byte_level(writer, "smollm" if kind == "llama" else "qwen2")
    for name, shape in shapes(kind, is_tied).items():
        array = draws.normal(0, 0.05, shape).astype(np.float32)
        if len(shape) == 1:  # which no program quantizes
            writer.add_tensor(name, array + name.endswith("norm.weight"))
            continue
        raw = quantize(array, type_name, draws)
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[type_name])
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_byte_level(writer, pre: str | None) -> None:
    """Adds a byte-level BPE whose first three tokens are control tokens."""
    tokens, merges = byte_tokens()
    types = [CONTROL if token in CONTROLS else NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def add_sentence_piece(writer) -> None:
    """Adds a SentencePiece BPE like Llama 2's."""
    content = json.loads(pieces().to_str())
    vocab = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    made = ["".join(merge) for merge in content["model"]["merges"]]
    types = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, "<eot>": CONTROL}
    kinds = [BYTE if t.startswith("<0x") else types.get(t, NORMAL) for t in vocab]
    scores = [-float(made.index(t)) if t in made else -1e3 for t in vocab]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocab)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
