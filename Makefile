# Everything a newcomer needs: `make demo` and `make test` set up a virtual environment first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install demo audit-demo inversion-demo leakage-demo lock-demo test test-long test-rest test-flower test-nvflare lint types slow fast all clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]" --constraint constraints.txt
	touch $@

demo: install
	$(BIN)/python examples/demo.py

audit-demo: install
	$(BIN)/python examples/audit_demo.py

inversion-demo: install
	$(BIN)/python examples/inversion_demo.py

leakage-demo: install
	$(BIN)/python examples/leakage_demo.py

lock-demo: install
	$(BIN)/python examples/lock_demo.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports

types: install
	$(BIN)/pyright --pythonpath $(BIN)/python

CHECKS := --jaxtyping-packages=lightning_privacy,beartype.beartype
PYTEST := $(BIN)/python -m pytest $(CHECKS)
LONG := tests/cli tests/contract  # about half of the suite's time

test: install lint types
	$(MAKE) --no-print-directory --jobs=2 test-long test-rest  # two processes: each test has one thread

test-long: install
	$(PYTEST) $(LONG)

test-rest: install
	$(PYTEST) $(LONG:%=--ignore=%)

# Federation engines pin many packages (rich, protobuf): each has an environment of its own, without our constraints.
test-flower test-nvflare: test-%: .venv-%/.installed
	.venv-$*/bin/python -m pytest $(CHECKS) -m "slow or not slow" tests/federated

.venv-%/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,$*]"
	touch $@

slow: install
	$(BIN)/python -m pytest -m slow -s

fast: install
	$(BIN)/python -m pytest -x -m "not dist and not slow"

all: test

clean:
	rm -rf $(VENV) .venv-flower .venv-nvflare .pytest_cache .ruff_cache
