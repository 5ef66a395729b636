PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKERS ?= 2

.PHONY: help install test check format demo bench clean

help:  ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

# torch comes first and alone: a build that is chosen by pip's own settings is then not replaced by another.
$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $(INSTALLED)

install: $(INSTALLED)  ## Make .venv with everything the tests need

test: install  ## Run all tests, WORKERS files at a time (2 GB of memory each)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --junitxml=.pytest-report.xml $(ARGS)

check: install  ## Lint and check the formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: install  ## Train the quickstart, offline, show what it changed, and search with it
	rm -rf runs/quickstart
	HF_HUB_OFFLINE=1 $(BIN)/accelerate launch --config_file configs/accelerate/cpu.yaml run_simcse.py --config configs/quickstart.json
	@if [ -n "$$SIMCSE_DATA_DIR" ]; then \
		HF_HUB_OFFLINE=1 $(BIN)/simcse-hf eval sample:encoder runs/quickstart --pooler_type avg --tasks korsts-dev --output runs/quickstart/korsts-dev; \
	else \
		echo 'Set SIMCSE_DATA_DIR to see both on KorSTS-dev as well.'; \
	fi
	HF_HUB_OFFLINE=1 $(BIN)/simcse-hf search --model runs/quickstart --corpus sample:sentences --top_k 3 '점심으로 뭘 먹을까요?'

bench: install  ## Repeat the benchmarks (hours; needs SIMCSE_DATA_DIR and SIMCSE_MODELS_DIR)
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/sts_training.py

clean:  ## Remove .venv and the demo's run
	rm -rf $(VENV) runs/quickstart build .pytest-report.xml
