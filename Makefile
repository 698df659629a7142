# Every target makes the virtual environment first if it is missing; one that exists is used as it is.
#   VENV=/path/to/env  another environment      PYTHON=python3.12  what a new one is made with
#   PIP_ARGS=…         more options for pip     ARGS=…             more options for demo and test
VENV ?= .venv
PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
RUN = "$(VENV)/bin/python" -m

.DEFAULT_GOAL := help
.PHONY: help demo test lint strip lab benchmark clean distclean env env-dev
.NOTPARALLEL:

# What pyproject.toml asks for and the environment lacks, extras named on the command line included. -P keeps this
# folder, where skylib lies, out of what counts as installed.
define MISSING
import re, sys, tomllib
from importlib.metadata import distributions
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
asked = project["dependencies"] + [r for extra in sys.argv[1:] for r in project["optional-dependencies"][extra]]
names = [re.match(r"[\w.-]+", r)[0] for r in asked]
print(*[n for n in names if not any(distributions(name=n))], sep=", ")
endef
export MISSING

# $(call check,extra): one line that says what to do where the environment lacks something.
define check
missing=$$("$(VENV)/bin/python" -P -c "$$MISSING" $(1) 2>/dev/null) || \
  { echo "$(VENV)/bin/python does not run, or is older than Python 3.11." >&2; exit 1; }; \
if [ -n "$$missing" ]; then \
  echo "The environment $(VENV) lacks $$missing. Run: \"$(VENV)/bin/python\" -m pip install -c constraints.txt -e '.[dev,browser]'" >&2; \
  exit 1; \
fi
endef

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

demo: env  ## run all notebooks on a simulated sky, into papermill_runs/demo
	@$(RUN) skylib demo --run-dir papermill_runs/demo $(ARGS)

test: env-dev  ## run the tests
	@$(RUN) pytest $(ARGS)

lint: env-dev  ## check style, types, and that notebooks hold no output
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@set -- notebooks/*.ipynb; if [ -e "$$1" ]; then $(RUN) nbstripout --verify "$$@"; fi

strip: env-dev  ## remove the output of the notebooks
	@set -- notebooks/*.ipynb; if [ -e "$$1" ]; then $(RUN) nbstripout "$$@"; fi

lab: env  ## open the notebooks in JupyterLab
	@$(RUN) jupyterlab --notebook-dir=notebooks $(ARGS)

benchmark: env  ## run every script of benchmarks/
	@set -- benchmarks/*.py; if [ ! -e "$$1" ]; then echo "No benchmark yet."; exit 0; fi; \
	for script; do echo "== $$script"; "$(VENV)/bin/python" "$$script" $(ARGS) || exit 1; done

clean:  ## remove caches and papermill_runs/demo; the environment stays
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .coverage test-artifacts build dist papermill_runs/demo
	@find skylib tests notebooks benchmarks -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
	@echo "Removed caches and papermill_runs/demo; .venv is kept (make distclean removes it)."

distclean: clean  ## clean, and remove .venv too
	@rm -rf .venv skylib.egg-info

# The marker, with the number of the process that installs, is there from before the first step until after the last,
# so that an installation that was killed is never taken for complete, and nothing else is ever removed.
env:
	@marker="$(VENV)/.installing"; \
	if [ -e "$$marker" ]; then \
	  if kill -0 "$$(cat "$$marker")" 2>/dev/null; then \
	    echo "Another make installs into $(VENV) just now: wait for it (or remove $$marker)." >&2; exit 1; \
	  fi; \
	  echo "The installation into $(VENV) did not finish; starting again."; rm -rf "$(VENV)"; \
	fi; \
	if [ ! -e "$(VENV)" ] || rmdir "$(VENV)" 2>/dev/null; then \
	  "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }; \
	  echo "Installing into $(VENV) (some minutes, 2 to 3 GB) ..."; \
	  mkdir -p "$(VENV)" && echo $$$$ >"$$marker" && "$(PYTHON)" -m venv "$(VENV)" && \
	  $(RUN) pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev,browser]' && rm "$$marker" || \
	    { echo "The installation into $(VENV) failed: see above." >&2; exit 1; }; \
	elif [ ! -x "$(VENV)/bin/python" ]; then \
	  echo "$(VENV) holds no bin/python: remove it, or name another environment: make VENV=/path/to/env ..." >&2; exit 1; \
	fi
	@$(call check)

env-dev: env
	@$(call check,dev)
