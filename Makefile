# Two commands: `make demo` and `make test`. Each makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_FLAGS ?= --quiet --disable-pip-version-check

.PHONY: demo test test-slow lint install tables clean

install: $(STAMP)

# SAEBench asks for torchvision but never imports it. Its default build needs a CUDA build of
# torch and otherwise breaks `import transformers`, so it is removed: without it everything
# imports, on CPU and GPU machines alike.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt "torch"
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[bench,dev]"
	$(BIN)/python -m pip uninstall $(PIP_FLAGS) -y torchvision
	$(BIN)/python -c "import sae_lens, transformer_lens, sae_bench, saelens_adaptive_ortho"
	@touch $@

demo: install
	$(BIN)/adaptive-ortho compare configs/demo.yaml

test: install
	$(BIN)/python -m pytest

test-slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Every table and verdict in the documentation, from the committed JSON.
tables: install
	$(BIN)/python -m evals.tables

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis
