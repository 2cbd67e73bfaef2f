# `make quickstart` and `make test` need python3 (3.11 to 3.14), venv, make and a package index.
PYTHON ?= python3
BIN := .venv/bin
# Every package at the version that was tested; `make lock` renews the file.
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
# Two processes, a file each at a time, slow files first.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-fast check format docs lock clean

# QUICKSTART: further options, such as `make quickstart QUICKSTART='--seed 1'`.
quickstart: .venv/installed
	$(BIN)/python -m frame_jax.main --config configs/quickstart.yaml $(QUICKSTART)

test: .venv/installed-dev
	$(BIN)/python -m pytest $(WORKERS) -q tests

# What holds of functions and small files; whole runs, large compilations and several processes wait
# for `make test`.
test-fast: .venv/installed-dev
	$(BIN)/python -m pytest $(WORKERS) -q -m "not slow and not browser" tests

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy frame_jax tools tests

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Into build/docs; a warning, such as a link that leads nowhere, is an error. The variable silences
# an advertisement of the theme.
docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "docs: build/docs/index.html"

# PyTorch, of which the extras bench and eval take any, is left to who installs it. Markers that hold
# wherever this runs are left out.
lock: .venv/bin/python
	$(BIN)/python -m pip install --quiet uv
	echo "torch; sys_platform == 'never'" > .venv/no-torch
	$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 \
	  --overrides .venv/no-torch --no-emit-package torch \
	  --extra dev --extra docs --extra bench --extra eval --extra ray \
	  --no-annotate --no-header --no-emit-index-url --output-file .venv/lock.txt pyproject.toml
	sed -e "s/ ; python_full_version < '3.15' and (sys_platform == 'darwin' or sys_platform == 'linux')$$//" \
	  -e "s/ and (sys_platform == 'darwin' or sys_platform == 'linux')$$//" \
	  -e "s/ and python_full_version < '3.15'$$//" .venv/lock.txt > constraints.txt

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable .
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable '.[dev]'
	touch $@ .venv/installed

.venv/installed-docs: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable '.[docs]'
	touch $@ .venv/installed

clean:
	rm -rf .venv .cache build *.egg-info
