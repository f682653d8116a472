# make demo: install, run the main job, print where its report is.    make test: install with the dev extra, run the gate.
# Each target has an environment of its own, kept and used again until a file of the project changes.

.DELETE_ON_ERROR:
.PHONY: demo test slow clean help

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
DEMO := .venv
TEST := .venv-test
IN_PARALLEL := --numprocesses auto --dist loadfile
RUN_DIR ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

# Always the installed distribution: neither the working directory nor the caller's PYTHONPATH is searched.
unexport PYTHONPATH PYTHONHOME
export PYTHONSAFEPATH := 1

# Directories are listed too: a file that went away changes the time of its directory.
PROJECT := pyproject.toml constraints.txt README.md LICENSE $(shell find fedscale_local strategies clients conf \
	-name __pycache__ -prune -o -name '*.pyc' -o -print | tr ' ' '?')

define install
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or later with venv was found; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(@D)/bin/pip || $(PYTHON) -m venv $(@D)
	@rm -rf build *.egg-info
	$(@D)/bin/python -m pip install --quiet -c constraints.txt "$(1)"
	@rm -rf build *.egg-info
	@touch $@
endef

demo: $(DEMO)/installed
	$(DEMO)/bin/fedscale-local run experiment=quickstart run_dir=$(RUN_DIR)
	@test -s $(RUN_DIR)/report.html

test: $(TEST)/installed
	$(TEST)/bin/python -m pip check
	$(TEST)/bin/ruff check .
	$(TEST)/bin/mypy
	$(TEST)/bin/pytest $(IN_PARALLEL)

# Nodes, Ray and killed runs wait for each other for a good part of the time: one worker more than there are cores.
# In the order of collection, as the files with the longest tests are not those with the most.
slow: $(TEST)/installed
	@$(TEST)/bin/pytest -m slow --timeout 900 --numprocesses $$(( $$(nproc) + 1 )) --dist loadgroup --no-loadscope-reorder

clean:
	rm -rf $(DEMO) $(TEST) build *.egg-info

help:
	@head -2 Makefile | cut -c3-

$(DEMO)/installed: $(PROJECT)
	$(call install,.)

$(TEST)/installed: $(PROJECT)
	$(call install,.[dev])
