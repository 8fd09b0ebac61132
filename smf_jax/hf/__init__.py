"""Models in and out of the formats of Hugging Face.

families.py  one table of names a family
config.py    a `config.json` in our terms, and back
files.py     safetensors, index and JSON: found, checked, read tensor by tensor
load.py      a model and its tokenizer from a folder
save.py      and into one, read back and compared
adapter.py   low-rank additions for PEFT
"""

from smf_jax.hf.files import carried_files, fetch, read_model_json
from smf_jax.hf.load import describe, import_model, read_tokenizer, split_config
from smf_jax.hf.save import Dtype, ExportError, export_model

__all__ = [
    "Dtype",
    "ExportError",
    "carried_files",
    "describe",
    "export_model",
    "fetch",
    "import_model",
    "read_model_json",
    "read_tokenizer",
    "split_config",
]
