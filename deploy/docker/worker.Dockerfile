# A worker of any tier, on a CPU or, by NVIDIA's container runtime, on a GPU: PyPI's torch carries CUDA's libraries.
# Build from the repository's root:
#   docker build -f deploy/docker/worker.Dockerfile -t sparsity-worker:0.1.0 .
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /src
COPY deploy/docker/worker.lock.txt worker.lock.txt
COPY client client
COPY serving serving
COPY kernels kernels
COPY worker/pyproject.toml worker/pyproject.toml
COPY worker/sparsity_worker worker/sparsity_worker
RUN python -m venv /opt/sparsity/venv \
    && /opt/sparsity/venv/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r worker.lock.txt \
    && /opt/sparsity/venv/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation \
       ./client ./serving ./worker
# The small model of trials, 270 MB.
RUN /opt/sparsity/venv/bin/python -m sparsity_worker.default_model /opt/sparsity/models/SmolLM2-135M-Instruct \
    && chmod -R a+rX /opt/sparsity/models

FROM python:3.11.14-slim-bookworm
# Triton compiles with a C compiler, SGLang counts cores and memory nodes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y gcc libc6-dev libnuma1 util-linux \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/sparsity /opt/sparsity
ENV PATH=/opt/sparsity/venv/bin:$PATH \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Writes nowhere but to /tmp and what is mounted.
USER 10001:10001
EXPOSE 7001 7002 9464
CMD ["python", "-m", "sparsity_worker", "--help"]
