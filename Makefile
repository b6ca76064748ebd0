# `make quickstart` and `make test` do all set-up: they create .venv/ in this checkout.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PEER := .venv-interop
DIGITS := data/digits/test/annotations.json
# Files side by side, one core each; a file stays in one process, which shares its fixtures.
TOGETHER := -n 2 --dist loadfile --no-loadscope-reorder
QUICK := not slow and not faults and not browser and not interop and not gpu

.PHONY: help quickstart test test-all interop check schemas format clean

help:
	@echo "make quickstart   a real small search on real pixels, to checkpoint, ONNX and engine (about ten minutes)"
	@echo "make test         style, types and the quick tests"
	@echo "make test-all     every test that this machine can run"
	@echo "make interop      TAO's AutoML runner, in an environment of its own, searches with our trainer"
	@echo "make check        style and types alone"
	@echo "make schemas      write schemas/*.json and templates anew from the spec classes"

quickstart: $(STAMP) $(DIGITS)
	$(BIN)/ddetr train -e experiments/quickstart.yaml

$(DIGITS): $(STAMP)
	$(BIN)/ddetr make-data digits --out data/digits

test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -q $(TOGETHER) -m "$(QUICK)"

# What kills processes and fills disks runs alone.
test-all: test
	$(BIN)/pytest -q -m "not ($(QUICK))"

interop: $(STAMP) $(PEER)/.installed
	$(BIN)/pytest -q tests/interop

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

schemas: $(STAMP)
	$(BIN)/python -m hpo.build_schemas

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first: a CPU-only wheel, where the machine offers one, then satisfies every other package.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

$(PEER)/.installed:
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet nvidia-tao-automl==7.2.0
	@touch $@

clean:
	rm -rf .venv $(PEER) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
