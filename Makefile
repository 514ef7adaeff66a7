# Needs Python >= 3.11 with pip, make and (for speed) a C++ compiler; everything else is installed into .venv.
#   make serve [ARGS="--http-port 9000"]    the service on the built-in models
#   make test  [ARGS="-k scan"]             the whole test suite
.DEFAULT_GOAL := help
.PHONY: help serve test quick long lint deploy-lint format setup smoke clean

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# the first Python that is new enough; `make PYTHON=/path/to/python ...` chooses another
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# what an installation depends on: a later change installs again
INPUTS := pyproject.toml constraints.txt setup.py $(wildcard operators/scan/kernel/*)

help:
	@echo 'make serve   install what serving needs, then start the service (ARGS="--http-port 9000")'
	@echo 'make test    install everything, then run the test suite (ARGS="-k scan")'
	@echo 'make quick   the tests that take no more than some seconds each'
	@echo 'make long    the tests that take minutes each, for which CI has no time'
	@echo 'make lint    formatting, lint, types, import contracts'
	@echo 'make deploy-lint  hadolint and checkov on the image and the manifests of deploy/'
	@echo 'make format  mend formatting and what lint can mend'
	@echo 'make setup   install everything'
	@echo 'make smoke   build the wheel, install it in a fresh environment, solve a field with it'
	@echo 'make clean   remove .venv and what was built'

serve: $(VENV)/.serving
	$(BIN)/mno serve $(ARGS)

# the tests start threads and processes of their own on few cores: thread pools of libraries would get in the way
test quick long: export OMP_NUM_THREADS ?= 1

# the last -m counts: it takes the slow tests back in
test: $(VENV)/.everything
	$(BIN)/python -m pytest -m "not long" $(ARGS)

long: $(VENV)/.everything
	$(BIN)/python -m pytest -m long $(ARGS)

quick: $(VENV)/.everything
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.everything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

deploy-lint: $(VENV)/.everything $(VENV)/.checkov
	BIN=$(BIN) CHECKOV=$(VENV)/checkov/bin/checkov bash deploy/lint.sh

format: $(VENV)/.everything
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(VENV)/.everything

smoke: $(VENV)/.everything
	BIN=$(BIN) PYTHON=$(PYTHON) bash deploy/smoke.sh

clean:
	rm -rf $(VENV) build dist *.egg-info

# uv is several times faster; pip does the same where uv cannot be had. Compiled at once, PyTorch is imported
# in half the time, even where Python may not write its bytecode later. uv knows pip's find-links by another name.
define install
	@UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -c constraints.txt -e '$(1)' \
		|| $(BIN)/python -m pip install -c constraints.txt -e '$(1)'
	@touch $@
endef

$(VENV)/.serving: $(VENV)/.created $(INPUTS)
	$(call install,.)

$(VENV)/.everything: $(VENV)/.created $(INPUTS)
	$(call install,.[test])
	@touch $(VENV)/.serving

# an environment of its own: checkov wants older releases of what the tests need
$(VENV)/.checkov: deploy/lint-requirements.txt $(VENV)/.created
	$(PYTHON) -m venv $(VENV)/checkov
	@$(BIN)/uv pip install --quiet --python $(VENV)/checkov/bin/python -r $< \
		|| $(VENV)/checkov/bin/python -m pip install --quiet -r $<
	@touch $@

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo 'expected Python >= 3.11, found none; name one: make PYTHON=/path/to/python'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet uv || echo 'uv cannot be had; pip does its work'
	@touch $@
