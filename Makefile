# Everything runs offline but `install` and the peers of `bench`. Variables may be overridden: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
SUITE ?= cpu_sft
TESTS ?=
# Bare names are resolved by the ordinary configuration of pip, so a CPU or a CUDA build of torch is the user's choice.
TORCH ?= torch==2.13.0
# More for pip, as --no-compile where most of what is installed is never run.
PIP_FLAGS ?=

PY := $(VENV)/bin/python
PLUGINS := $(sort $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml)))
PROJECTS := pyproject.toml $(addsuffix /pyproject.toml,$(PLUGINS))
# Named by content: a plugin that is added, changed or removed means another installation, whatever the dates of files say.
STAMP := $(VENV)/.installed-$(shell sha256sum $(PROJECTS) | sha256sum | cut -c1-16)
# One thread per process: two processes with two threads each on two cores wait for one another more than they compute.
# Many tests start processes: where compiled modules may not be kept, each of them compiles thousands of files for seconds.
ENVIRONMENT := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=
CHECKED := lightning_ft $(wildcard plugins/*/lightning_ft_*) $(wildcard plugins/*/tests) tests benchmarks

.PHONY: help install quickstart test test-long lint format bench clean

help:
	@echo "make install | quickstart | test [TESTS=path] | test-long | lint | format | bench SUITE=$(SUITE) | clean"

install: $(STAMP)

$(STAMP):
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet $(PIP_FLAGS) $(TORCH)
	$(PY) -m pip install --quiet $(PIP_FLAGS) hatchling editables
	$(PY) -m pip install --quiet $(PIP_FLAGS) --no-build-isolation $(TORCH) --editable ".[dev]" $(addprefix --editable ./,$(PLUGINS))
	rm -f $(VENV)/.installed-*
	touch $@

quickstart: $(STAMP)
	$(VENV)/bin/lightning-ft quickstart

# -ra (pyproject.toml) ends the output with every skipped test and why. Each process begins with a part of its own, so that what the
# tests of a file share is made once.
test: $(STAMP)
	$(ENVIRONMENT) $(PY) -m pytest -n $(JOBS) --dist worksteal $(TESTS)

test-long: $(STAMP)
	$(ENVIRONMENT) $(PY) -m pytest -m long --timeout 7200 -o faulthandler_timeout=7500 $(TESTS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy $(CHECKED)

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(STAMP)
	$(PY) -m benchmarks.run $(SUITE)

clean:
	rm -rf $(VENV) benchmarks/.venv-peers* .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
