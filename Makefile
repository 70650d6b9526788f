# Two commands: "make demo" and "make test". Each makes .venv first; a Python and make are enough.
PY ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip
# More for pytest: make test ARGS="-k redis -x". Each of the WORKERS has its own servers; 0: no xdist.
ARGS ?=
WORKERS ?= 3
PYTEST = -m pytest -n $(WORKERS) --dist worksteal $(ARGS)
# 4: the tests and the faults on a RabbitMQ 4, which is fetched if need be (tests/rabbitmq4.py).
export RABBITMQ
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# Celery x Python; one cell: make matrix CELLS=5.5-3.10
CELERIES = 5.5 5.6 5.7
PYTHONS = 3.10 3.11 3.12 3.13
CELLS ?= $(foreach celery,$(CELERIES),$(foreach python,$(PYTHONS),$(celery)-$(python)))
# Everything runs on the oldest and on the newest; elsewhere what depends on the versions.
WHOLE = $(firstword $(CELERIES))-$(firstword $(PYTHONS)) $(lastword $(CELERIES))-$(lastword $(PYTHONS))
PART = tests/unit tests/integration/test_brokers.py tests/integration/test_compatibility.py \
  tests/integration/test_service.py

.PHONY: help setup demo test lint format docs house faults soak fleet ecosystem celery-suite \
  kombu-suite matrix build clean

help:
	@echo "make demo    watch tasks fail, retry, die and be replayed, in under a minute"
	@echo "make test    run the tests; no server is needed, the missing ones are skipped"
	@echo "make faults  kill what can die, and count every task; make soak: at random, for minutes"
	@echo "make ecosystem     try packages that teams use beside Celery, one scenario each"
	@echo "make celery-suite  run Celery's own integration tests with us, list what differs"
	@echo "make kombu-suite   run kombu's own tests of its Redis transport on ours"
	@echo "make fleet         workers of 0.1.0 beside those of today, a minute of load a pool"
	@echo "make lint    ruff, mypy and codespell"
	@echo "make docs    make the pages of docs/ a site with a search, in build/docs"
	@echo "make house   print the packages in their order, and imports that point up"
	@echo "make format  let ruff put the code in order"
	@echo "make matrix  unit, conformance and compatibility tests on Celery $(CELERIES) and Python"
	@echo "             $(PYTHONS), as far as they are there; everything on $(WHOLE)"
	@echo "make build   make wheel and sdist in dist/, and check them; PROJECT_URL=... for a release"
	@echo "make setup   only make .venv with all that development needs"
	@echo "make clean   remove what these commands made"

setup: $(VENV)/.dev

demo: $(VENV)/.demo
	@$(BIN)/celery-resilience demo $(ARGS)

test: $(VENV)/.dev
	@$(BIN)/python $(PYTEST)

# One row, one broker: make faults ARGS="--row 2 --broker redis"; make faults RABBITMQ=4: on that.
faults: $(VENV)/.dev
	@$(BIN)/python -m tests.faults $(ARGS)

# make soak ARGS="--minutes 1 --seed 7 --broker rabbitmq-quorum"
soak: $(VENV)/.dev
	@$(BIN)/python -m tests.faults.soak $(ARGS)

# celery-batches pins an older Celery than it works with.
ecosystem: $(VENV)/.dev
	@$(PIP) install --quiet --constraint constraints.txt --group ecosystem-more
	@$(PIP) install --quiet --no-deps 'celery-batches>=0.11'
	@$(BIN)/python -m pytest $(ARGS) tests/ecosystem

# make celery-suite ARGS="--broker rabbitmq". An environment of its own, for the sake of its plugins.
celery-suite: $(VENV)/.dev
	@[ -e .venv-suite/.made ] || { $(PY) -m venv .venv-suite && \
	  .venv-suite/bin/python -m pip install --quiet --upgrade 'pip>=25.1' && \
	  .venv-suite/bin/python -m pip install --quiet --constraint constraints.txt \
	    --group celery-suite --editable '.[demo]' && touch .venv-suite/.made; }
	@.venv-suite/bin/python -m tests.ecosystem $(ARGS)

# kombu's own tests of its Redis transport, on ours; and workers of 0.1.0 beside those of today.
kombu-suite: $(VENV)/.dev
	@$(BIN)/python -m tests.ecosystem.kombu_suite

fleet: $(VENV)/.dev
	@$(BIN)/python -m tests.faults.fleet $(ARGS)

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@git ls-files -z | xargs -0 $(BIN)/codespell

# A warning is an error: a link or an anchor that leads nowhere, a page that is in no list.
docs: $(VENV)/.docs
	@rm -rf build/docs
	@$(BIN)/python -m sphinx -q -W --keep-going -b html -c docs -d build/doctrees . build/docs
	@echo "build/docs/index.html"

house: $(VENV)/.dev
	@$(BIN)/python -m tests.house

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

$(VENV)/bin/python:
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed: make ... PY=python3.12"; exit 1; }
	@echo "making $(VENV) with $$($(PY) --version)"
	@$(PY) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "This Python can't make a venv; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@echo "installing what the demo needs (once)"
	@$(PIP) install --quiet --editable '.[demo]'
	@touch $@

# pip learnt --group in 25.1.
$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing what the tests need (once)"
	@$(PIP) install --quiet --upgrade 'pip>=25.1'
	@$(PIP) install --quiet --constraint constraints.txt --group dev \
	  --editable '.[demo,examples]'
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/.dev
	@echo "installing what makes the docs (once)"
	@$(PIP) install --quiet --constraint constraints.txt --group docs
	@touch $@

# The wheel is made from the sdist, and the sdist runs tests of its own. A wheel that is installed
# by itself has to know its commands.
build: $(VENV)/.dev
	@rm -rf dist build/sdist build/venv
	@$(BIN)/python -m build --outdir dist .
	@$(BIN)/python -m twine check --strict dist/*
	@mkdir -p build/sdist && tar -xzf dist/*.tar.gz -C build/sdist --strip-components 1
	@cd build/sdist && $(abspath $(BIN))/python -m pytest -q -p no:cacheprovider -n 0 \
	  tests/unit/test_house.py tests/unit/test_layers.py tests/unit/test_packaging.py \
	  tests/unit/test_benchmarks.py \
	  tests/unit/test_policy.py tests/docs/test_docs.py
	@$(PY) -m venv build/venv
	@build/venv/bin/python -m pip install --quiet "$$(ls dist/*.whl)[redis]"
	@cd build/venv && bin/celery-resilience --version && bin/celery --help | grep -q resilience

matrix: $(addprefix cell-,$(CELLS))

# pyenv's shims exist for a Python that they then refuse to run, hence the trial.
cell-%:
	@celery=$(firstword $(subst -, ,$*)); version=$(lastword $(subst -, ,$*)); venv=.venv-$*; \
	for python in python$$version $$(ls -d $$HOME/.pyenv/versions/$$version*/bin/python 2>/dev/null); do \
	  $$python -c '' 2>/dev/null && break; python=; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Celery $$celery: no Python $$version here, skipped"; [ -z "$$CI" ]; exit; \
	fi; \
	echo "=== Celery $$celery on Python $$version"; \
	set -e; \
	if ! [ -e $$venv/.made -a $$venv/.made -nt pyproject.toml -a $$venv/.made -nt constraints.txt ]; then \
	  $$python -m venv --clear $$venv; \
	  $$venv/bin/python -m pip install --quiet --upgrade 'pip>=25.1'; \
	  $$venv/bin/python -m pip install --quiet --constraint constraints.txt --group dev \
	    --editable '.[demo,examples]' "celery==$$celery.*"; \
	  touch $$venv/.made; \
	fi; \
	$$venv/bin/python $(PYTEST) $(if $(filter $*,$(WHOLE)),,$(PART))

clean:
	rm -rf $(VENV) .venv-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
