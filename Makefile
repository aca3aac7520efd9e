# make demo and make test do all their own set-up in .venv; PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
BIN := .venv/bin
# This folder goes on Python's path as it is; setuptools' finder of editable packages takes 9 ms of every start of Python.
PLAIN := --config-settings editable_mode=compat

.PHONY: demo test test-newest test-least lint man bench compare install install-test install-bench clean

install: .venv/installed
install-test: .venv/installed-test
install-bench: .venv/installed-bench

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("memcluster needs Python 3.11 or later; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable . $(PLAIN)
	$(BIN)/python -m compileall -q memcluster
	@touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]' $(PLAIN)
	@touch $@

.venv/installed-bench: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check honcho py-spy 'cryptography>=42'
	@touch $@

demo: install
	@sh docs/demo.sh $(BIN)

test: install-test
	$(BIN)/python -m pytest -n 2 $(ARGS)

# The suite on Debian unstable, in a root of its own: see tests/newest.sh.
test-newest:
	@sh tests/newest.sh $(ARGS)

# The suite with the least version of every package that pyproject.toml allows.
test-least:
	@PYTHON=$(PYTHON) sh tests/least.sh $(ARGS)

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/mypy

# ARGS="--quick" shows that it works, ARGS="--all --write-docs" makes docs/performance.md anew; --help has the rest.
bench: install-bench
	$(BIN)/python -m bench $(ARGS)

# Measures docs/topologies.md anew, in four minutes; on a machine that does nothing else.
compare: install
	$(BIN)/python -m bench.topologies $(ARGS)

# The man pages, after a change of what --help says.
man: install
	$(BIN)/python docs/manual.py

clean:
	rm -rf .venv build *.egg-info
