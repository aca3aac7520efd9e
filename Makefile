# make demo and make test do all their own set-up in .venv; PYTHON=python3.12 chooses another interpreter, VENV=.venv-3.12
# another folder for it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# This folder goes on Python's path as it is; setuptools' finder of editable packages takes 9 ms of every start of Python.
PLAIN := --config-settings editable_mode=compat

.PHONY: demo test test-compiled test-newest test-least lint man bench compare fuzz compile pure fresh install install-test \
    install-bench clean

install: $(VENV)/installed
install-test: $(VENV)/installed-test
install-bench: $(VENV)/installed-bench

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("memcluster needs Python 3.11 or later; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable . $(PLAIN)
	$(BIN)/python -m compileall -q memcluster memcluster/*/ # which are links, and those it does not follow by itself
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]' $(PLAIN)
	@touch $@

$(VENV)/installed-bench: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check honcho py-spy 'cryptography>=42'
	@touch $@

$(VENV)/installed-fuzz: $(VENV)/installed-test
	$(BIN)/pip install --quiet --disable-pip-version-check 'atheris>=3.0'
	@touch $@

demo: install fresh
	@sh docs/demo.sh $(BIN)

test: install-test pure
	$(BIN)/python -m pytest -n 4 $(ARGS)

# What mypyc makes of the data path (see setup.py): a wheel, and what is compiled in it beside its source, where every
# command and test of this checkout then finds it.
compile: install-test pure
	rm -rf build/compiled build/lib*
	MEMCLUSTER_COMPILE=1 $(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/compiled .
	$(BIN)/python -c 'import glob, zipfile; [path] = glob.glob("build/compiled/*.whl"); wheel = zipfile.ZipFile(path); \
	wheel.extractall(members=[name for name in wheel.namelist() if name.endswith(".so")])'

# Be rid of what is compiled; `fresh` only if a source has changed since.
pure:
	@find -L memcluster -name '*.so' -delete

fresh:
	@for library in $$(find -L memcluster -name 'compiled__mypyc*.so'); do \
	    [ -z "$$(find -L $$(dirname $$library) -name '*.py' -newer $$library)" ] || $(MAKE) --no-print-directory pure; \
	done

# The suite with the compiled data path, but for what never meets it: see tests/forms.py. The checkout is left as it was.
test-compiled: compile
	@MEMCLUSTER_FORM=compiled MEMCLUSTER_TESTS=nodes $(BIN)/python -m pytest -n 4 $(ARGS); said=$$?; \
	$(MAKE) --no-print-directory pure; exit $$said

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
bench: install-bench fresh
	$(BIN)/python -m bench $(ARGS)

# Measures docs/topologies.md anew, in four minutes; on a machine that does nothing else.
compare: install fresh
	$(BIN)/python -m bench.topologies $(ARGS)

# Twenty million inputs that nobody would send, in an hour on one processor: see docs/security.md.
fuzz: $(VENV)/installed-fuzz
	$(BIN)/python -m bench.fuzz $(ARGS)

# The man pages, after a change of what --help says.
man: install
	$(BIN)/python docs/manual.py

clean: pure
	rm -rf $(VENV) build *.egg-info
