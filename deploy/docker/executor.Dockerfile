# The executor: the only image with torch. Built from the repository's root, for CPUs:
#   docker build -f deploy/docker/executor.Dockerfile -t hmi-executor:0.1.0-cpu .
# for CUDA (the package index's own torch brings the CUDA libraries; the host brings the driver):
#   docker build -f deploy/docker/executor.Dockerfile --build-arg TORCH_INDEX= -t hmi-executor:0.1.0-cuda .
FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt deploy/docker/executor.txt /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/hmi \
    && /opt/hmi/bin/pip install ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} \
        -c /build/constraints.txt -r /build/executor.txt

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
COPY services/executor services/executor
# HMI_ALLOW_REMOTE_PLAINTEXT is left to the deployment: an image must not decide that its network is trusted.
ENV PATH=/opt/hmi/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HMI_HOST=0.0.0.0 \
    HMI_PORT=50053 \
    HMI_METRICS_PORT=9090 \
    HMI_CACHE_DIR=/var/cache/hmi
EXPOSE 50053 9090
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --start-interval=1s CMD ["python", "-m", "services.common.health"]
CMD ["python", "-m", "services.executor"]
