PYTHON ?= python3
# gRPC's own chatter about forks and closed connections would stand between the lines of results.
export GRPC_VERBOSITY ?= ERROR
BIN := .venv/bin
# Chart and dashboards find the folder of caches as the environment does.
DEPLOY_TOOL := PYTHONPATH=tools $(BIN)/python deploy/tools

.PHONY: environment try run check test coverage test-gpu lint types style format protos risk-model locks charts bench-tiers bench-policies bench-router bench-risk bench-quality bench-kernels bench-serving bench-serving-tp2 bench-serving-70b chaos alerts options clean

environment:
	@$(PYTHON) tools/environment.py

# More options of `sparsity up`, as in `make run UP=--pools`.
UP ?=

# The same without torch, SGLang or a model: workers answer by an echo of the prompt. A minute the first time, 0.4 GB.
try:
	@$(PYTHON) tools/environment.py --light
	@$(BIN)/sparsity up --engine echo --tour $(UP)

# Starts Valkey, a worker of every tier and the router, and serves until interrupted.
run: environment
	@$(BIN)/sparsity up $(UP)

# Two files at a time, each on a core of its own: what takes long first, and one real engine after the other
# (tests/support/slow.py). Torch's threads would wait for a core that another process computes on.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder
PAIR := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE)
# Tests that wait in real time for routers: they do not run beside those that compute.
WAITING := tests/router tests/cli tests/client

# Tests start hundreds of processes of ours: what one has compiled the others read, whatever the caller's shell says.
test check coverage: export PYTHONDONTWRITEBYTECODE =

# Everything: style, types, stubs, unit and end-to-end tests. Each line ends with its ten slowest, and why they are.
test: lint
	@$(PAIR) $(WAITING:%=--ignore=%)
	@$(PAIR) $(WAITING)
	@TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests/kernels/gpu

# What is worth waiting for before each commit: style, types, stubs, and the tests that take no more than a moment.
check: export CHARTS = --newest
check: lint
	@$(PAIR) -m "not chaos and not slow"

# The lines that the same tests run, of every package and in every process.
coverage: environment
	@OMP_NUM_THREADS=1 $(BIN)/python tools/line_coverage.py $(SIDE_BY_SIDE) -m "not chaos and not slow"

# The kernels' tests on this machine's GPU. GPU_PYTHON names another interpreter, with torch, triton, pytest, pytest-timeout
# and pytest-xdist: then no environment is built, what only pytest-asyncio understands is left aside, and warnings of its versions are no errors.
GPU_PYTHON ?= $(BIN)/python
# Processes that compile kernels side by side.
GPU_JOBS ?= 8
GPU_PATH := client:serving:router:worker:kernels:policies:cli:bench$(if $(PYTHONPATH),:$(PYTHONPATH))
GPU_NEEDS := $(if $(filter $(BIN)/%,$(GPU_PYTHON)),environment)
test-gpu: $(GPU_NEEDS)
	@PYTHONPATH=$(GPU_PATH) $(GPU_PYTHON) -m pytest tests/kernels/gpu tests/worker/ranks -n $(GPU_JOBS) \
	  -o addopts="--import-mode=importlib -ra --strict-markers" -W default -W ignore::pytest.PytestConfigWarning

# Types beside the rest: each takes a core for half a minute.
lint: environment
	@$(MAKE) --no-print-directory -j 2 types style

types:
	@$(BIN)/python -m mypy
	@$(BIN)/python -m mypy --strict examples/*.py

style:
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/buf lint proto
	@$(BIN)/buf breaking proto --against proto/released.binpb
	@$(BIN)/python tools/protos.py --check
	@$(BIN)/yamllint --strict .
	@$(BIN)/hadolint deploy/docker/*.Dockerfile
	@$(DEPLOY_TOOL)/dashboards.py --check
	@$(BIN)/python tools/options.py --check
	@$(BIN)/python tools/risk_model.py --check
	@$(DEPLOY_TOOL)/promql.py
	@$(DEPLOY_TOOL)/release.py
	@$(DEPLOY_TOOL)/workflows.py
	@$(if $(KUBECTL),$(DEPLOY_TOOL)/server_side.py $(KUBECTL),echo "chart: no API server asked; KUBECTL='kubectl --context NAME' names one")
	@$(DEPLOY_TOOL)/charts.py $(CHARTS)

format: environment
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

protos: environment
	@$(BIN)/python tools/protos.py

# What shipped texts and exemplars teach, after an edit of either; half a minute.
risk-model: environment
	@$(BIN)/python tools/risk_model.py

# What images install, with hashes, after an edit of dependencies.
locks: environment
	@$(BIN)/python tools/locks.py

# Dashboards, and the chart's golden renders, after an edit of either.
charts: environment
	@$(DEPLOY_TOOL)/dashboards.py
	@$(DEPLOY_TOOL)/charts.py --write

# The page of options, after an edit of RouterConfig or WorkerConfig; `make charts` for what the chart takes of them.
options: environment
	@$(BIN)/python tools/options.py

# Needs `make run` in another terminal.
bench-tiers: environment
	@$(BIN)/sparsity bench tiers --out docs/benchmarks

# Starts what it needs; takes about six minutes.
bench-policies: environment
	@$(BIN)/sparsity bench policies --out docs/benchmarks

# Starts what it needs, other routers too, which it installs first; takes about seven minutes.
bench-router: environment
	@$(BIN)/sparsity bench router --out docs/benchmarks

# Held-out texts against the shipped policies; about two minutes.
bench-risk: environment
	@$(BIN)/sparsity bench risk --out docs/benchmarks

# Fewer lengths and cases than the committed report, and nothing beside the profiles but dense: about ten minutes on two cores.
bench-quality: environment
	@$(BIN)/sparsity bench quality --profile smollm2-135m-aggressive --profile smollm2-135m-moderate \
	  --lengths 1024,8192 --families needles,documents --folder .cache/quality

# On a machine with a Hopper GPU, by GPU_PYTHON: checks every kernel, then times it beside dense attention; under eight minutes.
bench-kernels: $(GPU_NEEDS)
	@PYTHONPATH=$(GPU_PATH) $(GPU_PYTHON) -m sparsity_bench.kernels --out docs/benchmarks

# On a machine with a Hopper GPU: time to first token, time a token and throughput of every tier, after proof and parity.
bench-serving: environment
	@$(BIN)/python -m sparsity_bench.serving --out docs/benchmarks

# The same on two GPUs of one host that share each layer's heads, and Llama-3.3-70B's shape on four.
bench-serving-tp2 bench-serving-70b: environment
	@$(BIN)/python -m sparsity_bench.serving $(if $(findstring 70b,$@),--large,--ranks 2) --out docs/benchmarks

# A line for every fault of callers, editors and workers, a fuzz of 20,000 calls, and a soak of 100,000 requests.
chaos: environment
	@$(BIN)/python -m pytest -v -s -m "" --every-fault tests/chaos tests/router/test_never_sparser.py

# Checks the alerts by Prometheus' promtool, which is fetched where there is none, and plays them and what scaling asks.
alerts: PROMTOOL = $(shell $(PYTHON) tools/prometheus_server.py promtool)
alerts:
	@$(PROMTOOL) check rules deploy/helm/sparsity-router/files/alerts.yaml
	@$(PROMTOOL) test rules tests/deploy/alerts_test.yaml tests/deploy/scaling_test.yaml

clean:
	rm -rf .venv build *.egg-info
