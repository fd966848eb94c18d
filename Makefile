# Everything a newcomer needs: `make demo` and `make test`. Both make and use the environment .venv/ and need Python 3.11, nothing else.
PYTHON ?= python3.11
VENV := .venv
THIN := .venv-thin
BIN := $(VENV)/bin

.PHONY: demo test check cluster-demo protos bench stress clean

demo: $(VENV)/.ready
	$(BIN)/python client/examples/digits.py

test: $(VENV)/.ready $(THIN)/.ready check
	$(BIN)/python -m pytest

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

cluster-demo: $(VENV)/.ready
	PYTHON=$(BIN)/python deploy/demo.sh

bench: $(VENV)/.ready
	$(BIN)/python tests/bench/launch.py
	$(BIN)/python -W ignore tests/bench/inference.py

# Ten minutes of mixed runs and predictions beside two busy processes; SEED= repeats one.
stress: $(VENV)/.ready
	$(BIN)/python -W ignore tests/stress/stress.py $(if $(SEED),--seed $(SEED))

protos: $(VENV)/.ready
	cd protos && ../$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. sparkgap_protos/v1/*.proto

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# A client as it is in the field: pyspark-client alone, no torch, no Java.
$(THIN)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(THIN)
	$(THIN)/bin/pip install -q -c constraints.txt -e '.[client]'
	touch $@

clean:
	rm -rf $(VENV) $(THIN) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
