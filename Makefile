# `make quickstart` and `make test` need python3 (3.11 or newer), venv, make and a package index.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test check format clean

quickstart: .venv/installed
	$(BIN)/python -m frame_jax.main --config configs/quickstart.yaml

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -q tests

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy frame_jax

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# pip 23, which comes with Python 3.11, needs an hour to agree on the clients of the stores.
.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ .venv/installed

clean:
	rm -rf .venv build *.egg-info
