# `make demo` and `make test` set up all they need. PYTHON chooses the interpreter, 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo serve-demo test test-slow lint format docs lock reference clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/' | column -t -s ':'

# The constraints are part of the environment: a change of either reinstalls, nothing else does.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev,plan,serve]'
	@touch $@

demo: $(STAMP)  ## train a large and four small models on real text, and report (about 4 minutes)
	$(BIN)/python -m launch.demo

serve-demo: $(STAMP)  ## serve two of the demo's models with a page, after make demo
	$(BIN)/python -m launch.serve_demo

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

test-slow: $(STAMP)  ## run the tests that take minutes each
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) $(VENV)/.docs-installed  ## build the documentation site in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.docs-installed: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

lock:  ## pin what a fresh installation resolves to, after changing pyproject.toml
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet -e '.[demo,dev,docs,plan,serve]'
	.venv-lock/bin/python -m pip freeze --exclude-editable > constraints.txt
	rm -rf .venv-lock

reference: $(STAMP)  ## regenerate and re-check the golden arrays against independent implementations
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[reference]'
	$(BIN)/python -m pytest -m reference

clean:  ## remove the environment and all runs
	rm -rf $(VENV) runs
