# Each target works in a fresh clone on a machine with Python 3.11 and make; the second time costs seconds.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed-$(shell cat setup.py install.sh constraints.txt constraints-no-deps.txt constraints-peers.txt constraints-triton.txt constraints-vllm.txt | sha256sum | cut -c1-16)
ROOMS := runtime configs data_pipeline checkpoints train launch

.DEFAULT_GOAL := help
.PHONY: help install quickstart test lint bench bench-gpu gpu-ahead faults clean

help:
	@echo "make quickstart  train, export and report a small speech LM on this machine"
	@echo "make test        lint and all tests"
	@echo "make lint        ruff, mypy, import-linter"
	@echo "make bench       the measurements in tests/benchmarks"
	@echo "make bench-gpu   training, decoder and tokeniser on one GPU beside transformers, under nine minutes"
	@echo "make gpu-ahead   its training steps compiled for a GPU that is not there, in two minutes"
	@echo "make faults      30 random faults over a tiny run, which must end as if nothing had happened"
	@echo "make install     the virtual environment in $(VENV) alone"
	@echo "make clean       remove the virtual environment and tool caches; runs/ stays"

install: $(INSTALLED)

$(INSTALLED):
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	./install.sh $(BIN)/python
	rm -f $(VENV)/installed-*
	touch $@

# The tiny scale is the one for CPU cores, whatever else the machine has.
quickstart: $(INSTALLED)
	CUDA_VISIBLE_DEVICES= $(BIN)/megaphone run recipe=quickstart scale=tiny

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two files at a time, in the order of tests/conftest.py; a file's tests stay together, since they share what is costly
# to make.
test: lint
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: $(INSTALLED)
	@for script in $(filter-out %/__init__.py,$(wildcard tests/benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

bench-gpu: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks.gpu

gpu-ahead: $(INSTALLED)
	$(BIN)/python -W ignore -m tests.benchmarks.gpu.ahead

faults: $(INSTALLED)
	$(BIN)/python -W ignore -m tests.faults.campaign

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(ROOMS) tests -name __pycache__ -type d -prune -exec rm -rf {} +
