# make demo     install into .venv, then harvest, train and analyze on the embedded model (about three minutes)
# make test     install the development tools too, and run the tests (about ten minutes on two cores)
# make interop  install other tools into an environment of their own, and load the exports with them (tests/interop)
# make test-cloud  the tests of object storage against an S3 server on loopback (moto, in an environment of its own)
# make faults   the fault trials at length (tests/faults; about an hour on two cores)
# make test-slow  the tests that `make test` omits because they take long: kills, full disks, controllers, target L0
# make lint     formatting and style (ruff), types (mypy), import contracts (import-linter)
# make format   apply the formatting and the fixes that ruff can make
# make gpu      the checks of a CUDA device, at most 8 minutes (make gpu-wheels first, where pip reaches no package index)
# make clean    remove .venv and everything that the tools have cached

PYTHON ?= python3
VENV   ?= .venv
INTEROP ?= .venv-interop
CLOUD   ?= .venv-cloud
# An exact release first: pip accepts a CPU wheel of it, where the open range of pyproject.toml would download the
# newest build with gigabytes of CUDA libraries. Another release: make TORCH="torch==2.9.1" demo
TORCH  ?= torch==2.13.0
# Two processes, each test file in one of them: 136 s instead of 179 on two cores.
PYTEST ?= -q -n 2 --dist loadfile
BIN    := $(VENV)/bin
# Installed files are byte-compiled afterwards on all cores; pip would use one. 139 s instead of 170 on two cores.
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
# -qq: some packages ship files for other Python versions, whose SyntaxErrors are no concern of ours. pip has reported
# its own errors before.
BYTES  := $(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true

# make gpu: on a machine whose own Python has torch, transformers, numba and the like but no package index, WHEELS holds the
# rest, made by `make gpu-wheels` on another machine; the repository and that folder are all that must be copied there.
WHEELS     ?= wheels
GPU_PYTHON ?= 3.12
GPU_NEEDS  := zarr numcodecs donfig google-crc32c ruamel.yaml datasets dill multiprocess xxhash
OUT        ?= device-check
DOWNLOAD    = $(BIN)/python -m pip download --quiet --only-binary=:all: --python-version $(GPU_PYTHON) --dest $(WHEELS)

.PHONY: demo test test-slow test-cloud faults interop lint format gpu gpu-wheels clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/pipeline demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PYTEST)

interop: $(INTEROP)/.installed
	HF_HUB_OFFLINE=1 $(INTEROP)/bin/python -m pytest -q tests/interop

# --no-deps: the tools pin other releases of shared packages; transformer-lens comes with its own.
$(INTEROP)/.installed: tests/interop/requirements.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip --disable-pip-version-check install --quiet "$(TORCH)"
	$(INTEROP)/bin/python -m pip --disable-pip-version-check install --quiet --editable ".[interop]"
	$(INTEROP)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r tests/interop/requirements.txt
	@touch $@

test-cloud: $(VENV)/.installed-dev $(CLOUD)/.installed
	MOTO_SERVER="$(abspath $(CLOUD))/bin/moto_server" $(BIN)/python -m pytest -q tests/cloud

# 330 MB, of which nothing is imported here: the server is a process of its own.
$(CLOUD)/.installed: tests/cloud/requirements.txt
	$(PYTHON) -m venv $(CLOUD)
	$(CLOUD)/bin/python -m pip --disable-pip-version-check install --quiet -r tests/cloud/requirements.txt
	@touch $@

faults: $(VENV)/.installed-dev
	PIPELINE_FAULTS=long $(BIN)/python -m pytest -q -s --timeout 0 tests/faults
	$(BIN)/python -m pytest -q -m slow tests/shared/cache/test_kill.py

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PYTEST) --timeout 3600 -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@mkdir -p .mypy_cache/root && ln -sfn ../.. .mypy_cache/root/sparse_pipeline
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

gpu-wheels: | $(BIN)/python
	$(DOWNLOAD) --no-deps $(GPU_NEEDS)
	$(DOWNLOAD) pydantic

# The import name is a link to this folder; the wheels are unpacked beside it. The machine's Python stays as it is.
ifneq ($(wildcard $(WHEELS)),)
gpu:
	@mkdir -p build/gpu && ln -sfn ../.. build/gpu/sparse_pipeline
	$(PYTHON) -m pip install --quiet --no-index --no-deps --upgrade --target build/gpu $(WHEELS)/*.whl
	PYTHONPATH=build/gpu:. $(PYTHON) -m benchmarks.device --out $(OUT) --budget 470
else
gpu: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.device --out $(OUT) --budget 470
endif

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is required; choose one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml setup.py | $(BIN)/python
	$(PIP) "$(TORCH)"
	$(PIP) --editable .
	@$(BYTES)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml setup.py | $(VENV)/.installed
	$(PIP) --editable ".[dev]"
	@$(BYTES)
	@touch $@

clean:
	rm -rf $(VENV) $(INTEROP) $(CLOUD) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
