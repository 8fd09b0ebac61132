"""Run directories: opened to write, loaded, converted, verified.

files.py    names of the files, JSON written atomically
jsonl.py    one row a step: metrics.jsonl, nonfinite.jsonl
record.py   config.json: lineage, versions, hashes
lock.py     one writer at a time
open.py     a new run, or one that resumes from a checkpoint
load.py     a finished run: its model and tokenizer
convert.py  from and to Hugging Face
verify.py   every file and every number
"""

from smf_jax.runs.load import Run, load_base, load_run
from smf_jax.runs.open import AUTO, OpenRun, Resume, open_run

__all__ = ["AUTO", "OpenRun", "Resume", "Run", "load_base", "load_run", "open_run"]
