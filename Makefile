# Two commands on a machine with Python 3.11 or later: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
OUT ?= runs/demo
# PyTorch, which tests compare with, is installed only where they must not be skipped:
# its CUDA build takes gigabytes.
# So are the compilers for TPU and GPU of `smf plan`: 0.5 GB, and 1.4 GB on disk.
EXTRAS := test$(if $(SMF_REQUIRE_TORCH),-torch)$(if $(SMF_REQUIRE_PLAN),-plan)
INSTALLED := $(VENV)/.installed-$(EXTRAS)
KEEP_MEMORY := glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.tcache_count=127:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184

.PHONY: demo test lint clean

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

test: lint
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

clean:
	rm -rf $(VENV) build *.egg-info
