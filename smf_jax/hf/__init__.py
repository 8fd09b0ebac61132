"""Imports and exports of Hugging Face models.

names.py   the names of parameters
config.py  `config.json` from and to `ModelConfig`
keys.py    the keys of `config.json` on which no logit depends
files.py   safetensors, index and JSON
load.py    a model from a directory
tokens.py  its tokenizer, with BOS, the ends of an answer and the chat template
save.py    both to a directory, read back and compared; LoRA also as an adapter for PEFT
"""

from smf_jax.hf.config import split_config
from smf_jax.hf.files import carried_files, fetch, read_model_json
from smf_jax.hf.keys import set_aside
from smf_jax.hf.load import import_model
from smf_jax.hf.save import Dtype, ExportError, export_model
from smf_jax.hf.tokens import Bos, read_tokenizer, template_of

__all__ = [
    "Bos",
    "Dtype",
    "ExportError",
    "carried_files",
    "export_model",
    "fetch",
    "import_model",
    "read_model_json",
    "read_tokenizer",
    "set_aside",
    "split_config",
    "template_of",
]
