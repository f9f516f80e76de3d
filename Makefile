# Two commands do everything on a fresh machine: `make ablate` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := OMP_NUM_THREADS=1 $(BIN)/python

.PHONY: install ablate science test lint build bench cluster-test kill-test kill-storm long-test files-test slow-test charades-test fault-test watch-test clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

ablate: install  ## the demonstration: one table in minutes
	$(RUN) experiments/ablate_cutmix.py $(ARGS)

science: install  ## the four tables at length, 5 seeds; resumable
	for name in cutmix freeze mixup combination; do \
		$(RUN) experiments/ablate_$$name.py --preset science --seeds 5 $(ARGS) || exit 1; \
	done

test: lint
	$(RUN) -m pytest $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

build: install  ## the wheel and the source archive, in dist/
	rm -rf build
	$(BIN)/python -m build

bench: install  ## side-by-side ratios
	for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(RUN) $$file || exit 1; done

kill-test: install  ## kill -9 of the driver at random moments: the same table
	$(RUN) tests/kill/run.py

kill-storm: install  ## ten kill -9 of drivers, trials and workers
	$(RUN) tests/kill/run.py --storm

long-test: install  ## an hour of video through `ssdet infer`: memory as for a minute
	$(RUN) tests/long/run.py $(ARGS)

files-test: install  ## a few hundred generated videos, whole and damaged, beside ffmpeg's tools
	$(RUN) tests/files/run.py $(ARGS)

slow-test: install  ## an experiment on an S3 server, from two machines' mirrors
	$(RUN) -m pytest -m slow $(ARGS)

charades-test: install  ## files named as Charades' (needs its annotation): check, study, protocols
	$(RUN) tests/charades/run.py $(ARGS)

cluster-test: install  ## `ray up` of three nodes in network namespaces (root, Linux)
	$(RUN) tests/cluster/run.py

fault-test: install  ## faults of every kind on that cluster: the same table
	$(RUN) tests/cluster/faults.py $(ARGS)

watch-test: install  ## its dashboard, gauges and `ssdet watch` (also: Debian's prometheus)
	$(RUN) tests/cluster/watching.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
