# Everything a developer types. Each target makes .venv by itself when it is missing or stale.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo check test test-fast bench chaos soak clean

install: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Forger needs Python 3.11 or newer; name one with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: install  ## images to a champion, on a laptop
	$(BIN)/forger prepare embedded:digits data/digits
	$(BIN)/forger train jobs/experiments/digits.toml cluster.workers=2 --again
	$(BIN)/forger promote digits
	$(BIN)/forger sample models:/digits@champion -n 64 --seed 0 -o samples.png
	@echo
	@echo "look     samples.png, and the runs:   .venv/bin/mlflow ui --backend-store-uri sqlite:///runs/mlflow.db"
	@echo "next     .venv/bin/forger sample models:/digits@champion -n 100 --seed 1000 -o more.png"
	@echo "         .venv/bin/forger prepare embedded:faces data/faces"
	@echo "         .venv/bin/forger train jobs/experiments/faces.toml && .venv/bin/forger promote faces"
	@echo "         .venv/bin/forger history digits"

check: install  ## format, lint, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_architecture.py

test: install  ## all that must hold; of what needs Ray or servers two files at a time
	$(BIN)/python -m pytest -m "not slow" -n auto
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder --durations=40

test-fast: install  ## without Ray, servers and other processes
	$(BIN)/python -m pytest -m "not slow" -n auto

bench: install  ## ratios for MEASUREMENTS.md
	$(BIN)/python -m tests.bench

chaos: install  ## N seeded faults on real runs; the table for MEASUREMENTS.md in chaos.md
	$(BIN)/python -m tests.chaos --faults $(or $(N),100) --seed $(or $(SEED),0) --table chaos.md

soak: install  ## ten minutes of faults that come as they like
	$(BIN)/python -m tests.chaos soak --minutes $(or $(MINUTES),10) --mttf $(or $(MTTF),120)

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
