# make sweep   set up everything, then run the built-in sweep to its leaderboards (interrupted, it goes on where it was)
# make test    set up everything, then run the tests
# make docs    build the documentation site in site/
# make doctor  what works on this machine, and how to fix what does not
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
export VENV PYTHON

.PHONY: sweep test test-long doctor lint docs env sample clean

sweep: env sample
	$(PY) slurm/launch_sweep.py

test: env sample
	@./install.sh slurm
	$(PY) -m pytest -n 2 --dist loadgroup -m "not long"

test-long: env sample
	@./install.sh slurm
	$(PY) -m pytest -m long

doctor:
	@if [ -x $(PY) ]; then $(PY) -m whitebench.doctor; else $(PYTHON) -m whitebench.doctor; fi

lint: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: env
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "site/index.html"

env:
	@./install.sh

sample:
	@$(PY) -m pretrain.data sample

clean:
	rm -rf $(VENV) build *.egg-info
