# `make help` lists the targets. Every target but help and clean makes .venv on first use.
PYTHON ?= python3
PYTEST_WORKERS ?= auto
BIN := .venv/bin
STAMP := .venv/.installed
RUNS ?= runs

# One thread per process: pytest-xdist and the benchmark already use all cores, and results do not depend on their number.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
# Tests start many processes: what one of them has compiled, the others read.
unexport PYTHONDONTWRITEBYTECODE

CHECKS = $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python -m mypy mixaug

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-gpu lint format policies bench gallery docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /:/' | awk -F: '{ printf "  make %-10s %s\n", $$1, $$2 }'

# The stamp is written last: an installation that broke off is done again.
$(STAMP): setup.cfg setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "mixaug needs Python 3.10 or later; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Installing mixaug and its tools into .venv (once; a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@# pip compiles what it installs, but no checkout; processes that start at once would all do it.
	@$(BIN)/python -m compileall -q mixaug tools
	@touch $@

demo: $(STAMP)  ## compare mixing policies on photographs and on diabetes data, a few minutes on two cores
	@echo "Regression: every policy of the diabetes experiment, five seeds each; what is finished is skipped"
	@$(BIN)/python tools/benchmark.py experiment=diabetes root=$(RUNS)/diabetes
	@echo "Classification: every policy of the photos experiment, three seeds each; what is finished is skipped"
	@$(BIN)/python tools/benchmark.py experiment=photos root=$(RUNS)/photos
	@$(BIN)/python tools/gallery.py --out $(RUNS)/gallery.png
	@echo
	@echo "Leaderboards: $(RUNS)/photos/leaderboard/ and $(RUNS)/diabetes/leaderboard/, each with a leaderboard.md, .csv"
	@echo "and .html (open the page in a browser)"
	@echo "Policies in pictures: $(RUNS)/gallery.png"

# Side by side: the checks take one core for half a minute at most, and what they say comes after the tests' progress.
test: $(STAMP)  ## lint, beside the tests that need neither a GPU nor much time
	@echo "Checking style and types, and running the tests (without those marked slow or gpu)"
	@said=$$(mktemp); trap 'rm -f $$said' EXIT; ($(CHECKS)) > $$said 2>&1 & lint=$$!; \
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --maxprocesses 8 --dist worksteal -q --durations 10 \
	  -m "not slow and not gpu"; tests=$$?; \
	wait $$lint; lint=$$?; cat $$said; \
	if [ $$tests -ne 0 ]; then echo "make test: tests failed"; fi; \
	if [ $$lint -ne 0 ]; then echo "make test: style or types failed, see above"; fi; \
	[ $$tests -eq 0 ] && [ $$lint -eq 0 ]

test-slow: $(STAMP)  ## the tests that take more than a few seconds each
	@$(BIN)/python -m pytest -q -m "slow and not gpu"

# A Python that already sees a GPU, as images for GPUs bring it, needs no environment of its own.
SEES_GPU = $(PYTHON) -c 'import pytest, torch; raise SystemExit(not torch.cuda.is_available())' 2>/dev/null

test-gpu:  ## the tests that need a CUDA device, and all others on it
	@if $(SEES_GPU); then python=$(PYTHON); else $(MAKE) --no-print-directory $(STAMP) && python=$(BIN)/python; fi && \
	PYTHONPATH=$(CURDIR):$(CURDIR)/gpu_day/site:$$PYTHONPATH $$python -m pytest -q --device cuda -m "not slow"

lint: $(STAMP)  ## ruff and mypy
	@echo "Checking style and types"
	@$(CHECKS)

format: $(STAMP)  ## format the code and repair what ruff can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

policies: $(STAMP)  ## bring the lists of policies up to date, and draw pictures that are missing
	@$(BIN)/python tools/policies.py --answers

bench: $(STAMP)  ## time every policy; fails on what became slower here, and on rivals that a training step feels
	@$(BIN)/python tools/speed.py --check

gallery: $(STAMP)  ## a picture sheet of every policy
	@$(BIN)/python tools/gallery.py --out $(RUNS)/gallery.png
	@echo "Policies in pictures: $(RUNS)/gallery.png"

docs: $(STAMP)  ## the documentation as a site in site/, where every warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "Open site/index.html"

clean:  ## remove .venv, caches and builds; runs stay
	rm -rf .venv build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
