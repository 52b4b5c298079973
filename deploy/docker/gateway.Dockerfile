# The gateway: no torch, no durable state. Built from the repository's root:
#   docker build -f deploy/docker/gateway.Dockerfile -t hmi-gateway:0.1.0 .
FROM python:3.11-slim-bookworm AS build
COPY constraints.txt deploy/docker/gateway.txt /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/hmi \
    && /opt/hmi/bin/pip install -c /build/constraints.txt -r /build/gateway.txt

FROM python:3.11-slim-bookworm
# The number is the same in every image: the services share files, and Kubernetes checks for non-root by number.
RUN groupadd --gid 10001 hmi \
    && useradd --uid 10001 --gid hmi --no-create-home --shell /usr/sbin/nologin hmi \
    && install -d -o hmi -g hmi /var/cache/hmi
COPY --from=build /opt/hmi /opt/hmi
WORKDIR /app
COPY hmi hmi
COPY services/__init__.py services/__init__.py
COPY services/common services/common
COPY services/gateway services/gateway
# HMI_ALLOW_REMOTE_PLAINTEXT is left to the deployment: an image must not decide that its network is trusted.
ENV PATH=/opt/hmi/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HMI_HOST=0.0.0.0 \
    HMI_PORT=50051 \
    HMI_METRICS_PORT=9090 \
    HMI_CACHE_DIR=/var/cache/hmi
EXPOSE 50051 9090
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --start-interval=1s CMD ["python", "-m", "services.common.health"]
CMD ["python", "-m", "services.gateway"]
