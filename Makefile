# Two commands that set up everything on a fresh machine:
#   make reproduce    the main job on Digits (no download, no GPU), to a printed table
#   make test         the tests; make quick: those that take less than a minute together
#   make interop      the tests with Snakemake, and with MLServer and KServe as teachers, in environments of their own (.venv-interop; 800 MB)
#   make fuzz         random options, damaged files and killed runs: MINUTES=5 of each with SEED=0 (docs/reliability.md)
# The environment is .venv; it is made once, and again when requirements.txt changes.

PYTHON ?= python3
BIN := .venv/bin
JOBS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1)

MINUTES ?= 5
SEED ?= 0

.PHONY: reproduce test quick interop fuzz lint clean

reproduce: .venv/ready
	$(BIN)/python project/table.py digits --jobs $(JOBS)

test: .venv/dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

quick: .venv/dev
	$(BIN)/python -m pytest -n $(JOBS) $(addprefix tests/test_,house.py options.py checkpoints.py blackbox.py losses.py measures.py \
		models.py datasets.py gan.py) tests/test_scripts.py::test_a_dry_run_goes_through_and_keeps_nothing

interop: .venv/dev
	$(BIN)/python -m pytest tests/interop -rs

fuzz: .venv/dev
	$(BIN)/python tests/fuzz.py --minutes $(MINUTES) --seed $(SEED)

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/ready: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed, $(PYTHON) is older; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	@touch $@

.venv/dev: .venv/ready Makefile
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pytest pytest-xdist hypothesis ruff \
		onnx onnxscript onnxruntime snakemake -c constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check executorch -c constraints.txt || \
		echo "ExecuTorch has no package for this platform: its tests are skipped" >&2
	@touch $@

clean:
	rm -rf .venv .venv-interop
