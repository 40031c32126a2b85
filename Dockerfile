# An image of raybrain that Ray's cluster launcher, KubeRay and a laptop can run.
#   docker build -t raybrain .                              CPU
#   docker build -t raybrain:cuda --build-arg DEVICE=cuda . NVIDIA GPUs
ARG PYTHON=3.11-slim-bookworm
FROM python:${PYTHON} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src
RUN python -m venv /opt/raybrain
ENV PATH=/opt/raybrain/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# torch first: it is most of the image, and changes least. PyPI's wheels are those for CUDA, with its
# libraries beside them; those for a CPU are a quarter of the size and in an index of their own.
ARG DEVICE=cpu
ARG CPU_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt ./
RUN case "$DEVICE" in \
      cpu) pip install -c constraints.txt torch torchvision --index-url "$CPU_INDEX" ;; \
      cuda) pip install -c constraints.txt torch torchvision ;; \
      *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 2 ;; \
    esac
COPY . .
RUN extras=s3,plots; if [ "$DEVICE" = cuda ]; then extras=$extras,cuda; fi \
 && pip install -c constraints.txt ".[$extras]" psycopg2-binary boto3 \
 && find /opt/raybrain -type d -name tests -path '*/site-packages/*' -prune -exec rm -rf {} +

FROM python:${PYTHON}
ARG DEVICE=cpu
LABEL org.opencontainers.image.title=raybrain \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.description="raybrain for $DEVICE"
# wget: KubeRay asks it whether a node is well. rsync: Ray's launcher copies files with it.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends wget rsync \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 raybrain
COPY --from=build /opt/raybrain /opt/raybrain
ENV PATH=/opt/raybrain/bin:$PATH \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true \
    GIT_PYTHON_REFRESH=quiet \
    PYTHONUNBUFFERED=1
# By number, so that Kubernetes can see that it is not root.
USER 1000
WORKDIR /home/raybrain
# No ENTRYPOINT: Ray's launcher and KubeRay bring commands of their own.
CMD ["raybrain", "--help"]
