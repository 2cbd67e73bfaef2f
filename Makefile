# `make quickstart` and `make test` need python3 (3.11 or newer), venv, make and a package index.
PYTHON ?= python3
BIN := .venv/bin
# Every package at the version that was tested; `make lock` renews the file.
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: quickstart test check format lock clean

# QUICKSTART: further options, such as `make quickstart QUICKSTART='--seed 1'`.
quickstart: .venv/installed
	$(BIN)/python -m frame_jax.main --config configs/quickstart.yaml $(QUICKSTART)

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -q tests

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy frame_jax

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# PyTorch, of which the extras bench and eval take any, is left to who installs it.
lock: .venv/bin/python
	$(BIN)/python -m pip install --quiet uv
	echo "torch; sys_platform == 'never'" > .venv/no-torch
	$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 \
	  --overrides .venv/no-torch --no-emit-package torch \
	  --extra dev --extra bench --extra eval --no-annotate --no-header --no-emit-index-url \
	  --output-file constraints.txt pyproject.toml

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable .
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable '.[dev]'
	touch $@ .venv/installed

clean:
	rm -rf .venv build *.egg-info
