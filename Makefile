# On a machine with Python 3.11 or later: `make demo`, `make test` and `make docs`.
PYTHON ?= python3
VENV := .venv
OUT ?= runs/demo
SITE := docs/_build/html
COMMA := ,
# PyTorch, which tests compare with, is installed only where they must not be skipped:
# its CUDA build takes gigabytes.
# So are the compilers for TPU and GPU of `smf plan`: 0.5 GB, and 1.4 GB on disk.
TORCH := $(if $(SMF_REQUIRE_TORCH),$(COMMA)torch)
PLAN := $(if $(SMF_REQUIRE_PLAN),$(COMMA)plan)
# A real model, of which tests are skipped elsewhere: 98 MB, and what reads it.
REAL := $(if $(SMF_REQUIRE_REAL)$(filter real,$(MAKECMDGOALS)),$(COMMA)gguf)
DOCS := $(if $(filter docs site links tutorials figures wheel,$(MAKECMDGOALS)),$(COMMA)docs)
EXTRAS := test$(TORCH)$(PLAN)$(REAL)$(DOCS)
INSTALLED := $(VENV)/.installed-$(EXTRAS)
KEEP_MEMORY := glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.tcache_count=127:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184

.PHONY: demo test real lint docs site links tutorials figures wheel clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

# Pretrains a small model, teaches it new facts by every method, writes the report.
# A step makes large arrays anew: on Linux large pages, and memory that is kept for the
# next step, save a quarter of its time. A thread keeps 127 freed pieces of each size
# for itself (tcache_count), to wait less for others while it compiles. For small tables
# only: these pieces lie between large arrays, whose places are then not used again.
demo: $(INSTALLED)
	GLIBC_TUNABLES=$(KEEP_MEMORY) $(VENV)/bin/smf demo --out $(OUT)

test: lint $(if $(SMF_REQUIRE_REAL),real)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Puts SmolLM2-135M-Instruct into .cache/, and installs what `smf import-hf` needs for it.
real: $(INSTALLED)
	$(VENV)/bin/python tests/real/fetch.py

lint: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

# Builds the documentation, and opens it in a browser.
docs: site
	$(PYTHON) -m webbrowser "file://$(CURDIR)/$(SITE)/index.html"

site: $(INSTALLED)
	$(VENV)/bin/sphinx-build --quiet --fail-on-warning --keep-going docs $(SITE)

# Checks links to other sites, for which the network is needed.
links: $(INSTALLED)
	$(VENV)/bin/sphinx-build --quiet -b linkcheck docs docs/_build/links

# Executes the notebooks in place: their outputs are committed.
tutorials: $(INSTALLED)
	$(VENV)/bin/python docs/run_notebooks.py

# Draws the figures of the documentation from the runs of `make demo`.
figures: $(INSTALLED)
	$(VENV)/bin/python docs/figures.py $(OUT)

wheel: $(INSTALLED)
	$(VENV)/bin/python -m build --wheel
	$(VENV)/bin/twine check --strict dist/*.whl

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info
