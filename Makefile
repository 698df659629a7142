# Two commands do everything: `make demo` and `make test`. Each makes the virtual environment if it is missing.
VENV ?= .venv
PYTHON ?= python3
PY := "$(VENV)/bin/python"
RUN_DIR ?= papermill_runs/demo
PIP_ARGS ?=
PYTEST_ARGS ?=

.PHONY: help demo test robustness lint strip lab docs benchmark gpu clean distclean environment

help:
	@echo "make demo       simulate a sky, run every notebook on it, write a page of results ($(RUN_DIR)/index.html)"
	@echo "make test       all tests"
	@echo "make robustness damaged files, kills and full disks, at length (TRIALS=500: 10,000 files and 500 kills, hours)"
	@echo "make lint       formatting, lint, types, and notebooks without outputs"
	@echo "make strip      take the outputs out of the notebooks"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make docs       the documentation as a site (build/site/index.html)"
	@echo "make benchmark  run the benchmarks"
	@echo "make gpu        tests and benchmarks of a GPU, in 8 minutes (test-artifacts/gpu/gpu.md)"
	@echo "make clean      remove caches; results stay. make distclean also removes $(VENV)"

# The marker `unfinished`, with the number of the process that installs, is there from before the first step until
# after the last: an installation that was killed is made again. Nothing else is ever removed or changed: an existing
# environment is used as it is; missing packages are reported.
environment:
	@marker="$(VENV)/unfinished"; \
	if [ -e "$$marker" ]; then \
		pid=$$(cat "$$marker"); zombie=$$(ps -o stat= -p "$$pid" 2>/dev/null | grep Z); \
		if kill -0 "$$pid" 2>/dev/null && [ -z "$$zombie" ]; then \
			echo "another make is installing into $(VENV): wait for it (or remove $$marker)" >&2; exit 1; \
		fi; \
		echo "the installation into $(VENV) did not finish: starting again"; rm -rf "$(VENV)"; \
	fi; \
	if [ ! -e "$(VENV)" ] || rmdir "$(VENV)" 2>/dev/null; then \
		"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
			{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }; \
		echo "making $(VENV) (several minutes, 2 GB)"; \
		mkdir -p "$(VENV)" && echo $$$$ >"$$marker" && "$(PYTHON)" -m venv "$(VENV)" && \
		$(PY) -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[dev,browser,docs,scale]' && \
		rm "$$marker" || { echo "the installation into $(VENV) failed: see above" >&2; exit 1; }; \
	fi; \
	missing=$$($(PY) -P -c "$$MISSING" 2>/dev/null) || \
		{ echo "$(VENV)/bin/python does not run, or is older than Python 3.11: make VENV=/path/to/env ..." >&2; exit 1; }; \
	[ -z "$$missing" ] || { \
		echo "$(VENV) lacks $$missing: run  \"$(VENV)/bin/python\" -m pip install -c constraints.txt -e '.[dev,browser,docs,scale]'" >&2; exit 1; }

# Which requirements are not installed; quick, since nothing is imported. (-P: what lies in this folder does not count.)
define MISSING
import re, tomllib
from importlib.metadata import distributions
names = [re.match(r"[\w.-]+", r)[0] for r in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]]
print(*[name for name in names if not any(distributions(name=name))], sep=", ")
endef
export MISSING

demo: environment
	@$(PY) -m skylib demo --run-dir "$(RUN_DIR)"

# Two processes of one thread each: with more threads than cores, OpenMP waits for itself.
test: environment
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

TRIALS ?= 500
robustness: environment
	SKYLIB_ROBUSTNESS=$(TRIALS) $(PY) -m pytest --timeout=0 tests/robustness

lint: environment
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	set -- notebooks/*.ipynb; [ ! -e "$$1" ] || $(PY) -m nbstripout --verify "$$@"

strip: environment
	set -- notebooks/*.ipynb; [ ! -e "$$1" ] || $(PY) -m nbstripout "$$@"

lab: environment
	$(PY) -m jupyter lab --notebook-dir=notebooks

docs: environment
	$(PY) docs/build.py --run-dir "$(RUN_DIR)"

benchmark: environment
	$(PY) -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[benchmark]'
	@for script in $$(ls benchmarks/*.py | grep -v -e harness.py -e gpu -e recipe -e shipped_model.py); do \
		echo "== $$script"; $(PY) "$$script" || exit 1; \
	done

gpu: environment
	$(PY) benchmarks/gpu.py

clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info test-artifacts
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
	@[ ! -e "$(RUN_DIR)" ] || echo "the results in $(RUN_DIR) stay; to delete them: rm -r $(RUN_DIR)"

distclean: clean
	rm -rf "$(VENV)"
