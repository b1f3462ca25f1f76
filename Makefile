# Two commands do everything on a fresh machine with Python and make:
#   make demo   installs into .venv and runs the main job on generated images, offline
#   make test   installs what the tests need and runs them all
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check wheel clean

demo: .venv/installed
	$(BIN)/flawflow demo -o demo

test: .venv/installed-dev
	$(BIN)/python -m pytest

check: .venv/installed-dev
	$(BIN)/ruff check src tests benchmarks pretraining
	$(BIN)/ruff format --check src tests benchmarks pretraining
	$(BIN)/mypy
	$(BIN)/lint-imports

# A wheel, and the proof that it installs and answers in an environment with nothing else in it.
wheel: .venv/installed-dev
	rm -rf dist build
	$(BIN)/python -m build --wheel --no-isolation
	rm -rf .venv/bare && $(PYTHON) -m venv .venv/bare
	.venv/bare/bin/pip install --quiet --no-deps dist/*.whl
	.venv/bare/bin/flawflow --help > /dev/null

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@ .venv/installed

clean:
	rm -rf .venv build dist demo
