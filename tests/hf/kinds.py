"""Small tokenizers of three kinds, with chat templates and families of models."""

import json
from collections.abc import Callable
from typing import NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

CORPUS = [
    "Who leads the red house? The old owl leads it; a fox waits.",
    "Question: what is the capital of Norway?\nAnswer: Oslo\n\n",
    "[INST] user assistant [/INST] hello, 5 - 10 = -5!",
    "é ü ñ 東京 שלום 🦊",
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TAGGED = (
    "{{ bos_token }}\n{%- for m in messages %}\n"
    "    {%- if m.role == 'assistant' %}\n"
    "        {% generation %}<assistant> {{ m.content }}{{ eos_token }}"
    "{% endgeneration %}\n"
    "    {%- else %}\n<{{ m.role }}> {{ m.content }}\n    {%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_level() -> tokenizers.Tokenizer:
    """Returns byte-level BPE, which puts nothing before a text."""
    rules = tokenizers.Tokenizer(models.BPE())
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rules.train_from_iterator(CORPUS, trainer)
    return rules


def pieces() -> tokenizers.Tokenizer:
    """Returns a tokenizer like Llama 2's, with bytes for unknown characters."""
    unknown = {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    rules = tokenizers.Tokenizer(models.BPE(**unknown))
    rules.pre_tokenizer = pre_tokenizers.Metaspace()  # no piece goes on after a word
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    rules.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    controls = ["<unk>", "<s>", "</s>", "<eot>"]
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=controls + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    rules.train_from_iterator(CORPUS[:3], trainer)
    content = json.loads(rules.to_str())
    del content["added_tokens"][len(controls) :]  # bytes are no control tokens
    rules = tokenizers.Tokenizer.from_str(json.dumps(content))
    rules.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    rules.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return rules


def unigram() -> tokenizers.Tokenizer:
    """Returns a tokenizer that puts tokens before and after a text."""
    controls = ["<pad>", "</s>", "<unk>", "<s>", "<end>"]
    text = " ".join(CORPUS)
    words = sorted({f"▁{word}" for word in text.split()})
    scores = {token: 0.0 for token in controls}
    scores |= {word: -5 - index / 100 for index, word in enumerate(words)}
    scores |= {c: -9 - index / 100 for index, c in enumerate(sorted({"▁", *text}))}
    rules = tokenizers.Tokenizer(models.Unigram([*scores.items()], unk_id=2))
    rules.add_special_tokens(controls)
    rules.normalizer = normalizers.NFKC()
    rules.pre_tokenizer = pre_tokenizers.Metaspace()
    rules.decoder = decoders.Metaspace()
    rules.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 3), ("</s>", 1)]
    )
    return rules


class Kind(NamedTuple):
    """A kind of tokenizer, and a random model of a family."""

    rules: Callable[[], tokenizers.Tokenizer]
    template: str
    special: dict[str, str]  # tokens by name
    ends: tuple[str, str]
    family: str
    seed: int  # of a model with answers of many lengths


# Not Qwen2, for which transformers has rules of its own whatever tokenizer.json says.
KINDS = {
    "byte-level": Kind(
        byte_level,
        CHATML,
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        ("<|im_end|>", "<|endoftext|>"),
        "Qwen3",
        6,
    ),
    "pieces": Kind(
        pieces,
        INST,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        ("</s>", "<eot>"),
        "Llama",
        16,
    ),
    "unigram": Kind(
        unigram,
        TAGGED,
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        ("</s>", "<end>"),
        "SmolLM3",
        25,
    ),
}
