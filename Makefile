# make serve            set up what is missing, then serve the demo (ARGS="server.port=9000"), or another recipe
#                       (ARGS="recipe=… key=value")
# make test             run all tests
# make install          set up .venv alone; then .venv/bin/appliance recipe=… works. torch is the build for CPUs,
#                       from PyTorch's own index; for a card: make install TORCH_INDEX= EXTRAS=cuda (docs/gpu.md)
# make kernels          compile the kernels of some models for a card of KERNELS_ARCH (9.0a), without one; load each
# make soak             attack a server for some ten minutes; a table in bench/results/soak.md
# make lag              how late the event loop gets by the largest requests; a table in bench/results/lag.md
# make lint docs image  check the code, regenerate docs/configuration.md, build a container image
# make bundle KERNELS_FOLDER=…  all that a card machine without a package index lacks, in dist/bundle (docs/gpu.md)
# make lock audit       write requirements.lock and .hashes anew; ask what is known against it (needs a network, not in CI)

ARGS ?=
RECIPE ?= demo
PYTHON ?= $(shell for candidate in python3 python3.12 python3.11 python3.13; do \
	$$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$candidate && break; done)
TORCH = torch==2.13.0# as requirements.lock says
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu# empty: pip's own index, which has CUDA builds
KERNELS_FOLDER ?=# of compiled ones, for `make bundle`
KERNELS_ARCH ?= 9.0a
EXTRAS ?=# of pyproject.toml, as cuda
FLASHINFER = flashinfer-python==0.7.2.post1# for its signatures; its dependencies need a card

BIN = .venv/bin
VENV = $(patsubst %/bin,%,$(BIN))
PIP = $(BIN)/python -m pip --disable-pip-version-check
FROM_INDEX = --no-deps --retries 1 --timeout 20 --index-url
SOURCES = pyproject.toml setup.py Makefile
TIMED = tests/attack/test_lag.py# other tests beside it would hold the loop that it watches

CHOSEN = $(filter command environment,$(origin TORCH_INDEX) $(origin EXTRAS))# of `command line` one word will do

.PHONY: FORCE install serve test kernels bundle soak lag lint docs image lock audit

install: $(VENV)/.installed

# What was chosen once stays until something else is; another build of torch has the same version.
$(VENV)/.chosen: FORCE
	@mkdir -p $(VENV)
	@echo "$(TORCH_INDEX) $(EXTRAS)" | cmp -s - $@ || { echo "$(TORCH_INDEX) $(EXTRAS)" > $@; \
		test ! -x $(BIN)/python || $(PIP) uninstall --quiet --yes torch; }

$(VENV)/.installed: $(SOURCES) $(if $(CHOSEN),$(VENV)/.chosen)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed (make PYTHON=/path/to/python)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -z "$(TORCH_INDEX)" || $(PIP) install $(FROM_INDEX) "$(TORCH_INDEX)" "$(TORCH)" \
		|| echo "$(TORCH_INDEX) cannot be reached: torch comes from pip's own index, maybe with CUDA" >&2
	$(PIP) install "$(TORCH)" --editable ".$(if $(EXTRAS),[$(EXTRAS)])"
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP) install --quiet "$(TORCH)" --editable ".[test,signatures,lint]"
	$(PIP) install --quiet --no-deps "$(FLASHINFER)"
	@touch $@

serve: install
	@$(BIN)/appliance $(if $(findstring recipe=,$(ARGS))$(findstring model.path=,$(ARGS)),,recipe=$(RECIPE)) $(ARGS)

test: $(VENV)/.tested
	$(BIN)/python -m pytest $(TIMED)
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --ignore $(TIMED)

kernels: $(VENV)/.tested
	$(PIP) install --quiet "$(TORCH)" --editable ".[cuda-build]"
	$(BIN)/python -m tests.gpu.kernels --arch "$(KERNELS_ARCH)" --folder build/kernels

soak: $(VENV)/.tested
	$(BIN)/python -m tests.attack.soak --output bench/results/soak.md

lag: $(VENV)/.tested
	$(BIN)/python -m tests.attack.lag --output bench/results/lag.md

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m appliance.config.reference --check
	$(BIN)/hadolint --no-color Dockerfile

docs: install
	$(BIN)/python -m appliance.config.reference

lock: install
	$(BIN)/python -m tools.lock . "$(TORCH)"

audit: install
	$(PIP) install --quiet "$(TORCH)" --editable ".[audit]"
	$(BIN)/pip-audit --requirement requirements.lock --strict --no-deps --disable-pip

bundle: install
	@$(BIN)/python -m tools.bundle $(if $(KERNELS_FOLDER),--kernels "$(KERNELS_FOLDER)") $(ARGS)

image:
	docker build --build-arg RECIPE=$(RECIPE) $(foreach name,BASE TORCH_INDEX EXTRAS KERNELS_ARCH KERNELS_WITH,$(if \
		$(filter command line environment,$(origin $(name))),--build-arg $(name)="$($(name))")) \
		--label org.opencontainers.image.revision=$(shell git rev-parse HEAD 2>/dev/null) \
		--tag appliance-$(subst _,-,$(RECIPE)) .
