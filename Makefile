# make book · make test · make quick · make notebooks · make lint · make serve · make bench · make nightly · make mutants · make travel · make links · make lock
#
# Each target makes .venv from requirements.lock if it is missing or older than the lock.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help book site test quick nightly shapes mutants notebooks lint format bench travel links serve lock clean

PYTHON ?= python3
BASE ?= origin/main
PY := .venv/bin/python
CELL := 76
INSTALLED := .venv/.installed
BENCHMARKS ?= benchmarks/[!_]*.py
SITE := _build/html/index.html
SOURCES := _style.py $(shell find _config.yml _toc.yml book gauss_flows -type f -not -path "*/.*" -not -path "*/__pycache__/*")

help:
	@echo "make book       build the site, warnings as errors, and print where it is"
	@echo "make test       run everything: package, notebooks (nbval), hygiene, the built site"
	@echo "make quick      lint, types, and the tests of what differs from origin/main (BASE=... from elsewhere)"
	@echo "make notebooks  execute the chapters in place (NOTEBOOKS=book/x.ipynb for one)"
	@echo "make lint       ruff, over the notebooks too, and mypy"
	@echo "make bench      print speeds as ratios against rivals, from one run (BENCHMARKS=benchmarks/x.py for one)"
	@echo "make nightly    the slow tests that make test leaves out, and more drawn examples"
	@echo "make shapes     the numerical tests again, with every shape annotation enforced"
	@echo "make mutants    plant faults in the package, one at a time, and see who catches them"
	@echo "make travel     every notebook again, as three older processors would run it"
	@echo "make links      ask every address that the book names whether it is there"
	@echo "make serve      build the site and serve it on this machine, port 8000"
	@echo "make lock       resolve requirements.lock anew from pyproject.toml (needs uv)"

$(INSTALLED): requirements.lock pyproject.toml
	@echo "== Making .venv from requirements.lock (once; it takes a minute or two)"
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 15) else f"gauss_flows is tested on Python 3.11 to 3.14; this is {v.major}.{v.minor}. Name another: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install --quiet --require-hashes --requirement requirements.lock
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(INSTALLED)

site: $(SITE)

$(SITE): $(INSTALLED) $(SOURCES)
	@echo "== Building the site from the stored notebooks, warnings as errors"
	@rm -f $(SITE)
	@$(PY) .venv/bin/jupyter-book build . --all --warningiserror --nitpick --keep-going --quiet
	@test -s $(SITE) || { echo "The build ended without $(SITE)" >&2; exit 1; }
	@touch $(SITE)

book: site
	@echo "== The book is built: open $(SITE)"

test: site
	@echo "== Testing the package, every notebook, and the built site"
	@$(PY) -m pytest -n 2 --dist loadfile

quick: lint
	@echo "== Testing what differs from $(BASE)"
	@$(PY) tests/changed.py $(BASE)

nightly: site
	@echo "== The tests that make test leaves out"
	@HYPOTHESIS_PROFILE=nightly $(PY) -m pytest -n 2 -m "nightly or drawn" tests

# Refusals are left out: there the public functions' own errors come first.
SHAPED := $(addprefix tests/test_,$(addsuffix .py,normal rootfinding moments mixtures spline bijectors parametrize \
	coupling autoregressive incremental conditioners made linear lipschitz log_det residual \
	ode_solver velocity continuous convolution image))
REFUSALS := refuse or named or checked or wrong or none_is_given or errors or is_no
# JAX checks gradients with NumPy arrays, for which the numerical functions are not annotated.
GRADIENTS := derivatives or differentiates

shapes: $(INSTALLED)
	@echo "== Holding every shape annotation to what runs"
	@$(PY) -m pytest -n 2 --dist loadfile -m "" --jaxtyping-packages=gauss_flows,beartype.beartype \
		-k "not ($(REFUSALS) or $(GRADIENTS))" $(SHAPED)

mutants: $(INSTALLED)
	@echo "== Planting faults, one at a time"
	@$(PY) tests/mutants.py

notebooks: $(INSTALLED)
	@echo "== Executing the chapters in place"
	@$(PY) book/_execute.py $(NOTEBOOKS)

lint: $(INSTALLED)
	@echo "== ruff and mypy"
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check --exclude "*.ipynb"
	@$(PY) -m ruff format --check --line-length $(CELL) book/*.ipynb
	@$(PY) -m mypy

format: $(INSTALLED)
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format --exclude "*.ipynb"
	@$(PY) -m ruff format --line-length $(CELL) book/*.ipynb

bench: $(INSTALLED)
	@for script in $(BENCHMARKS); do echo "== $$script"; PYTHONPATH=book $(PY) "$$script"; done

travel: $(INSTALLED)
	@for isa in SSE4_2 AVX AVX2; do echo "== The notebooks, with instructions up to $$isa"; \
		XLA_FLAGS=--xla_cpu_max_isa=$$isa $(PY) -m pytest -n 2 --dist loadfile book; done

links: $(INSTALLED)
	@$(PY) book/_links.py

serve: site
	@echo "== Serving the book at http://localhost:8000 (Ctrl-C to stop)"
	@$(PY) -m http.server 8000 --bind localhost --directory _build/html

lock:
	@uv pip compile --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 --generate-hashes --no-annotate \
		--no-emit-index-url --all-extras --custom-compile-command "make lock" \
		pyproject.toml --output-file requirements.lock

clean:
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache
