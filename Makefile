# `make demo` starts the page, `make test` runs everything that is checked.
# Both set up .venv first; run again they start at once.
PYTHON ?= python3
VENV := .venv/bin
PYTEST_ARGS ?=
TRIAL_MINUTES ?= 55

.PHONY: help demo test quick trials check format setup setup-test

help:
	@echo "make demo    set up and start the web page"
	@echo "make test    set up and run every check: lint, format, types, all tests, short trials"
	@echo "make quick   set up and run the unit tests, about a minute"
	@echo "make trials  set up and try faults, load and cancelling for an hour"
	@echo "make format  sort imports and format the code"

demo: setup
	@$(VENV)/python app.py

# Two processes of one thread each: small tensors gain nothing from threads. What a file's tests
# share is made once where they stay together.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/python -m pytest -n 2 --dist worksteal

# Trials want a machine of their own: a short part of them runs once all else has ended, one after
# the other, and the whole by `make trials`.
test: check
	@$(PYTEST) -m "not trials" $(PYTEST_ARGS)
	@$(PYTEST) -n 0 tests/trials --trial-minutes 1 --timeout 1800

quick: setup-test
	@$(PYTEST) -m "not slow and not browser" $(PYTEST_ARGS)

trials: setup-test
	@$(PYTEST) tests/trials --trial-minutes $(TRIAL_MINUTES) --timeout 4200 $(PYTEST_ARGS)

check: setup-test
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy

format: setup-test
	@$(VENV)/ruff check --fix .
	@$(VENV)/ruff format .

setup setup-test:
	@command -v $(PYTHON) >/dev/null || { \
		echo "UltraGen needs Python 3.11 or newer, and '$(PYTHON)' was not found: install it," \
		"or name yours: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) scripts/setup.py $(if $(filter setup-test,$@),test)
