"""Imports and exports of Hugging Face models.

names.py           the names of parameters
config.py          `config.json` from and to `ModelConfig`
keys.py            the keys of `config.json` on which no logit depends
source.py          what a model is read from
files.py           a folder: safetensors, index and JSON
gguf.py            a GGUF file, as if it were a folder
gguf_header.py     its metadata and the places of its tensors
gguf_config.py     its `config.json`
gguf_tokenizer.py  its tokenizer's files
open.py            either of them
load.py            a model from it
tokens.py          its tokenizer, with BOS, the ends of an answer and the chat template
save.py            both to a directory, read back and compared; LoRA also for PEFT
"""

from smf_jax.hf.config import split_config
from smf_jax.hf.files import GGUF, fetch
from smf_jax.hf.keys import set_aside
from smf_jax.hf.load import import_model
from smf_jax.hf.open import open_source
from smf_jax.hf.save import Dtype, ExportError, export_model
from smf_jax.hf.source import carried_files, read_config_json
from smf_jax.hf.tokens import Bos, read_tokenizer, template_of

__all__ = [
    "GGUF",
    "Bos",
    "Dtype",
    "ExportError",
    "carried_files",
    "export_model",
    "fetch",
    "import_model",
    "open_source",
    "read_config_json",
    "read_tokenizer",
    "set_aside",
    "split_config",
    "template_of",
]
