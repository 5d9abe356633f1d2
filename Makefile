# make serve            set up what is missing, then serve the demo (ARGS="server.port=9000"), or another recipe
#                       (ARGS="recipe=… key=value")
# make test             run all tests
# make install          set up .venv alone; then .venv/bin/appliance recipe=… works
# make soak             attack a server for some ten minutes; a table in bench/results/soak.md
# make lint docs image  check the code, regenerate docs/configuration.md, build a container image
# make lock audit       write requirements.lock anew; ask what is known against it (needs a network, not in CI)

ARGS ?=
RECIPE ?= demo
PYTHON ?= $(shell for candidate in python3 python3.12 python3.11 python3.13; do \
	$$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$candidate && break; done)
TORCH = torch==2.13.0# a later one would bring gigabytes of CUDA packages
FLASHINFER = flashinfer-python==0.7.2.post1# for its signatures; its dependencies need a card

BIN = .venv/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES = pyproject.toml setup.py Makefile

.PHONY: install serve test soak lint docs image lock audit

install: .venv/.installed

.venv/.installed: $(SOURCES)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed (make PYTHON=/path/to/python)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install "$(TORCH)"
	$(PIP) install "$(TORCH)" --editable .
	@touch $@

.venv/.tested: .venv/.installed
	$(PIP) install "$(TORCH)" --editable ".[test,signatures,lint]"
	$(PIP) install --no-deps "$(FLASHINFER)"
	@touch $@

serve: install
	@$(BIN)/appliance $(if $(findstring recipe=,$(ARGS))$(findstring model.path=,$(ARGS)),,recipe=$(RECIPE)) $(ARGS)

test: .venv/.tested
	$(BIN)/python -m pytest

soak: .venv/.tested
	$(BIN)/python -m tests.attack.soak --output bench/results/soak.md

lint: .venv/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m appliance.config.reference --check
	$(BIN)/hadolint --no-color Dockerfile

docs: install
	$(BIN)/python -m appliance.config.reference

lock: install
	$(BIN)/python -m tools.lock requirements.lock "$(TORCH)"

audit: install
	$(PIP) install "$(TORCH)" --editable ".[audit]"
	$(BIN)/pip-audit --requirement requirements.lock --strict --no-deps --disable-pip

image:
	docker build --build-arg RECIPE=$(RECIPE) --tag appliance-$(subst _,-,$(RECIPE)) .
