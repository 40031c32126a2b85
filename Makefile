PYTHON ?= python3
BIN := .venv/bin
# Ray and torch read these when they start; one place, so that demo, test and lint agree.
export RAY_USAGE_STATS_ENABLED = 0
export MLFLOW_DISABLE_TELEMETRY = true

# Python compiles what is imported when it is imported: of 29,000 files 7,000 ever are, and compiling
# all takes two minutes. Without leave to keep what it compiled, every process would do it again.
PIP_FLAGS := --quiet --no-compile
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo paper test slow benchmark lint docs clean

demo: .venv/installed
	$(BIN)/raybrain demo

paper: .venv/installed
	$(BIN)/raybrain sweep jobs/sweeps/paper_small.yaml

test: .venv/installed-test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

slow: .venv/installed-test
	$(BIN)/python -m pytest -m slow

benchmark: .venv/installed-test
	$(BIN)/python -m pytest -m benchmark -s

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

# -W: a broken link, a name that is not there or an example that does not run fails the build.
docs: .venv/installed-docs
	$(BIN)/python -m sphinx -W -n --keep-going -q -b html docs docs/_build/html
	@echo docs/_build/html/index.html

clean:
	rm -rf .venv workspace docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable ".[s3,plots,test,lint]"
	touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable ".[docs]"
	touch $@
