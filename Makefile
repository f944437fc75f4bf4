# Each target does all its set-up: a virtual environment in .venv, made on the first call and after a changed requirement.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
JOBS ?= 2
CONSTRAINTS ?= constraints.txt
LOWEST ?= .venv-lowest

.PHONY: quickstart test lowest properties lint docs clean

quickstart: $(VENV)/.installed
	$(RUN) -m recipes.quickstart

# In two processes, for most machines have two cores; make test JOBS=8 takes more, JOBS=0 one process. Each begins with a half
# of the tests, so that modules share their fixtures, and takes from the other in the end.
test: $(VENV)/.installed
	$(RUN) -m pytest -n $(JOBS) --dist worksteal

# The same with the oldest versions of torch and of the hosts that are promised, in an environment of their own.
lowest:
	$(MAKE) test VENV=$(LOWEST) CONSTRAINTS=constraints-lowest.txt

# Many times the examples of the default run, new ones each time; the number of each property is printed.
properties: $(VENV)/.installed
	SNN_EXT_HYPOTHESIS=long $(RUN) -m pytest tests/properties

lint: $(VENV)/.installed
	$(RUN) -m pip install -q -c constraints.txt ruff mypy
	$(RUN) -m ruff check .
	$(RUN) -m mypy

docs: $(VENV)/.installed
	$(RUN) -m pip install -q -c constraints.txt -e '.[docs]'
	$(RUN) -m sphinx -q -W --keep-going docs build/docs

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit("PYTHON: got %d.%d, want 3.11 or newer: make PYTHON=python3.12 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS) -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) build *.egg-info
