# Everything a newcomer needs, on a machine with Python 3.11 and pip. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup setup-all demo controls study dashboard test test-fast lint table docs docs-serve bench gpu bench-analysis bench-scale

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | column -t -s '|'

setup: $(STAMP) ## a virtual environment in .venv with the versions of constraints.txt: what demo and test need

setup-all: $(STAMP) ## the same with Ray, lm-evaluation-harness, a browser's driver and TRL, without which their tests are skipped
	$(INSTALL) --editable '.[dev,all]'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[dev,most]'
	@touch $@

demo: $(STAMP) ## the first study: six methods on film reviews, then the table
	$(BIN)/python train.py experiment=demo
	$(BIN)/python -m analysis table runs/demo

controls: $(STAMP) ## AdaLoRA beside its controls on film reviews, then the table and the comparison
	$(BIN)/python train.py experiment=controls
	$(BIN)/python -m analysis table runs/controls
	$(BIN)/python -m analysis compare --all lora runs/controls

SCALE ?= main
SMOKE := $(if $(filter smoke,$(SCALE)),task=movie data.limit=300 data.eval_limit=200 train.max_steps=110)
comma := ,
METHODS := $(if $(SMOKE),variant=study/lora$(comma)study/adalora)
study: $(STAMP) ## the study of docs/study/protocol.md, for hours; GLUE=folder, or SCALE=smoke: a toy of it in ten minutes
	$(BIN)/python train.py experiment=study/tune study=tune-$(SCALE) $(if $(GLUE),glue.path=$(GLUE)) $(SMOKE) $(METHODS) \
		$(if $(SMOKE),optim.lr=1e-3$(comma)1e-2)
	mkdir -p conf/rates
	$(BIN)/python -m analysis choose runs/tune-$(SCALE) --output conf/rates/$(SCALE).yaml
	$(BIN)/python train.py experiment=study/report study=$(SCALE) $(if $(GLUE),glue.path=$(GLUE)) $(SMOKE) $(METHODS) \
		$(if $(SMOKE),seed=0$(comma)1)
	$(BIN)/python train.py experiment=study/controls study=$(SCALE) $(if $(GLUE),glue.path=$(GLUE)) $(SMOKE) \
		$(if $(SMOKE),seed=0$(comma)1)
	$(BIN)/python -m analysis compare --all lora runs/$(SCALE)
	$(BIN)/python -m analysis report runs/$(SCALE)

dashboard: $(STAMP) ## the runs of tracker=trackio, in a browser on this machine
	TRACKIO_DIR=$${TRACKIO_DIR:-runs/.trackio} $(BIN)/trackio show --host 127.0.0.1

test: lint ## lint, types and the whole test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(STAMP) ## the tests that are not marked slow
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

table: $(STAMP) ## the result tables of the pages from runs/reference; CHECK=1 only compares
	$(BIN)/python -m analysis readme README.md docs/first_results.md $(if $(CHECK),--check)

docs: $(STAMP) ## the documentation site in site/; a link to nothing is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

docs-serve: $(STAMP) ## the documentation site on 127.0.0.1:8000, built anew when a page changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --dev-addr 127.0.0.1:8000

bench: $(STAMP) ## cost of a training step beside PEFT's, in one process
	$(BIN)/python -m benchmarks.step_cost

gpu: $(STAMP) ## on a machine with CUDA: tests marked gpu, cost of a step, a run beside the CPU's, two processes
	$(BIN)/python -m benchmarks.gpu $(if $(DEVICE),--device $(DEVICE))

bench-analysis: $(STAMP) ## time and memory of table and collect on 10,000 records
	$(BIN)/python -m benchmarks.analysis_speed

bench-scale: $(STAMP) ## time and memory of planning up to 100,000 runs
	$(BIN)/python -m benchmarks.scale
