# make demo   install into .venv, then harvest, train and analyze on the embedded model
# make test   install the test tools too, and run the tests
# make lint   ruff and mypy

PYTHON ?= python3
VENV   ?= .venv
# One exact release first: a plain CPU wheel of it that pip finds is taken as it is, where the open range of
# pyproject.toml would fetch the newest build, with gigabytes of CUDA libraries. For another: make TORCH="torch==2.9.1" demo
TORCH  ?= torch==2.13.0
# Two processes, each test file in one of them: 136 s instead of 179 on two cores.
PYTEST ?= -q -n 2 --dist loadfile
BIN    := $(VENV)/bin
# Byte code of what was installed is made afterwards, on all cores: pip would do it on one. 139 s instead of 170 on two.
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
BYTES  := $(BIN)/python -m compileall -q -j 0 $(VENV)/lib || true

.PHONY: demo test lint format clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/pipeline demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PYTEST)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@mkdir -p .mypy_cache/root && ln -sfn ../.. .mypy_cache/root/sparse_pipeline
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed; make PYTHON=... picks another")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) "$(TORCH)"
	$(PIP) --editable .
	@$(BYTES)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.installed
	$(PIP) --editable ".[dev]"
	@$(BYTES)
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
