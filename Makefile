# Every target sets itself up: a virtual environment in .venv, filled by pip with the versions of constraints.txt.
# Needs Python 3.11 or newer, make, and a place where pip finds packages.

PYTHON ?= python3
ARGS ?=
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Two workers of one thread each: small tensors gain nothing from more, and the workers don't compete. Each takes half of
# the tests in their order, so that what a file's tests share is made once, and takes over from the other at the end.
# Compiled files are kept, also where the environment says otherwise: the tests start many processes.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(RUN) -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint types docs floors profiles times past-zero claims dist bench-env clean

help:  ## show this list
	@echo "make TARGET [PYTHON=python3.12] [ARGS=...]"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

demo: $(VENV)/.data  ## pretrain on MNIST, adapt to other digits in three ways, write runs/demo/
	$(RUN) recipes/demo/demo.py

test: $(VENV)/.dev  ## run the tests, doctests and examples of the docs, except slow ones; ARGS go to pytest
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.dev  ## run all of them
	$(PYTEST) $(ARGS)

lint: $(VENV)/.dev  ## check format and style with ruff, and the floors with import-linter
	$(RUN) -m ruff format --check
	$(RUN) -m ruff check
	$(VENV)/bin/lint-imports --no-logo --no-cache

types: $(VENV)/.dev  ## check types with mypy
	$(RUN) -m mypy

docs: $(VENV)/.dev  ## build the documentation into site/; a warning, a broken tag or a lost example is an error
	$(RUN) docs/build_site.py

floors: $(VENV)/.made  ## draw docs/assets/floors.svg from the imports of the code
	$(RUN) docs/draw_floors.py

profiles: $(VENV)/.data  ## draw docs/assets/profiles.png, the profiles and a schedule on its way to one
	$(RUN) docs/draw_profiles.py

times: $(VENV)/.data  ## draw docs/assets/times.png, the densities of the laws of t
	$(RUN) docs/draw_times.py

past-zero: $(VENV)/.data  ## draw pictures of docs/evidence/digits-past-zero from the rows of that study
	$(RUN) docs/draw_past_zero.py

dist: $(VENV)/.dev  ## build the source distribution and the wheel into dist/, and check them with twine
	rm -rf dist
	$(RUN) -m build --no-isolation --outdir dist
	$(RUN) -m twine check --strict dist/*

claims: $(VENV)/.dev  ## write the table of claims into verification/README.md
	$(RUN) verification/write_table.py

bench-env:  ## make .venv-bench, with gftkit and the libraries that benchmarks/ compares it with
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[report]' POT==0.9.6.post1 torchsde torchdiffeq
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torchcfm==1.0.7
	@echo ".venv-bench/bin/python benchmarks/training.py --json FILE, or sampling.py"

clean:  ## remove what make made, .venv too; runs/ stays
	rm -rf $(VENV) .venv-bench site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find gftkit plugins verification tests docs recipes -name __pycache__ -type d -exec rm -rf {} +

# A stamp says which extra is installed; it is older than pyproject.toml or constraints.txt where those changed.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "gftkit wants Python 3.11 or newer, and $(PYTHON) is: $$($(PYTHON) --version 2>&1)." \
			"Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.data: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing gftkit into $(VENV): some minutes the first time."
	$(PIP) -e '.[data,report]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing gftkit and its tools into $(VENV): some minutes the first time."
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps torchcfm
	@touch $(VENV)/.data $@
