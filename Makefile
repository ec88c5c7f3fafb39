# Crowdtone. `make` lists these verbs from their own comments; `make demo` and `make test` need nothing before them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
PROTOS := $(wildcard protos/crowdtone/v1/*.proto)
# `make unit ARGS='-k join -x'`
ARGS ?=

.PHONY: help setup setup-tests lock proto fmt lint check unit integration system test faults demo up down logs fuzz bench clean

help:  ## List the verbs.
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup:  ## Install what is missing: servers, Python packages, Kafka. Seconds when nothing is.
	@deploy/setup.sh

setup-tests:  ## The same and a browser, for the tests.
	@deploy/setup.sh --tests

demo: setup  ## Run the whole system on the sample feed. ONCE=1: end after checking the result.
	@$(BIN)/crowdtone demo $(if $(ONCE),--once)

up: setup  ## Start Kafka, Postgres and Redis on this machine.
	@$(BIN)/crowdtone stack up

down:  ## Stop them.
	@$(BIN)/crowdtone stack down

logs:  ## Show the ends of their logs, and of the services'.
	@$(BIN)/crowdtone stack logs

check: setup-tests lint  ## Everything that can be said without running it: style, types, layers, protos.
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	@set -e; fresh=$$(mktemp -d); trap 'rm -rf $$fresh' EXIT; $(call protoc,$$fresh); \
	for file in $$(cd $$fresh && find . -type f); do cmp $$fresh/$$file $$file || \
	  { echo "generated code is not what the .proto says: run make proto"; exit 1; }; done
	@echo "generated code is up to date"

lint:  ## Style only: ruff check and ruff format --check.
	$(BIN)/ruff check
	$(BIN)/ruff format --check

fmt:  ## Put the code into shape.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: setup-tests  ## All tests: unit, integration, system.
	$(BIN)/pytest $(ARGS)

unit: setup  ## Tests without servers.
	$(BIN)/pytest tests/unit $(ARGS)

integration: setup-tests  ## Tests with one real server at a time.
	$(BIN)/pytest tests/integration $(ARGS)

system: setup-tests  ## Tests of the whole, from outside.
	$(BIN)/pytest tests/system $(ARGS)

faults: setup-tests  ## Break the running system in every way and count what is lost. An hour or two; ARGS='--only kill-fusion'.
	@$(BIN)/python -m tests.faults $(ARGS)

fuzz: setup  ## Run atheris at every place where strangers' bytes come in. FUZZ_SECONDS=60 each; TARGET= for one.
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint requirements.lock atheris
	$(BIN)/python -m tests.fuzz $(TARGET) --seconds $(or $(FUZZ_SECONDS),60)

bench: setup  ## Measure the steps on this machine; docs/BENCHMARKS.md says how to read it.
	@$(BIN)/crowdtone bench encode && $(BIN)/crowdtone bench join

# $(call protoc,FOLDER): messages, gRPC code and types of all protos. -I. makes generated imports paths of this repository.
protoc = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I. --python_out=$(1) --mypy_out=quiet:$(1) \
  $(PROTOS) && PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I. --grpc_python_out=$(1) \
  --mypy_grpc_out=quiet:$(1) protos/crowdtone/v1/api.proto

proto: setup  ## Generate code from protos/.
	@$(call protoc,.)

# Not the whole set-up, which needs the lock: code may import already what is not in it yet.
$(BIN)/uv:
	@deploy/setup.sh

lock: $(BIN)/uv  ## Bring requirements.lock to pyproject.toml. UPGRADE=1: and everything to its newest version.
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --all-extras \
	  --no-header $(if $(UPGRADE),--upgrade) --output-file requirements.lock pyproject.toml

clean:  ## Remove what was made here: servers' data, environment, caches.
	@for stack in .local .local/demo; do \
	  test ! -f $$stack/stack.json || CROWDTONE_LOCAL_DIR=$$stack $(BIN)/crowdtone stack down; done
	rm -rf .local .venv *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
