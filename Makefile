# Every target makes and fills .venv by itself when it is missing; python3 must be 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
IMAGE ?= tidegate
# Builds the image where no container engine runs, if such a tool is at hand.
IMAGE_TOOL ?= $(wildcard ../shared/tools/image)

.PHONY: demo test check bench protos image

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	$(BIN)/pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/predict.py
	$(BIN)/python benchmarks/durability.py
	$(BIN)/python -m benchmarks.survival
	$(BIN)/python -m benchmarks.idle --streams 20000

protos: $(READY)
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. protos/tidegate/v1/tidegate.proto

image:
	@if docker info >/dev/null 2>&1; then docker build --tag $(IMAGE) .; \
	elif [ -n "$(IMAGE_TOOL)" ]; then $(IMAGE_TOOL) build -t $(IMAGE) .; \
	else echo "make image: no container engine runs here" >&2; exit 2; fi

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[training,dev]'
	touch $@
