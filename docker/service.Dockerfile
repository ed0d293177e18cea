# The job service without GPUs: requests, extraction, and training on CPUs or on a cluster.
#   docker build -f docker/service.Dockerfile -t etd-ds-service .
# Runs as a user without rights on a read-only root file system; it writes to /data and /tmp only.
ARG BASE=python:3.11-slim-bookworm

# hadolint ignore=DL3006
FROM ${BASE} AS build
# Where torch comes from. The CPU build has no CUDA libraries in it, which are several GB; empty: as pip is set up.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 DS_BUILD_OPS=0
WORKDIR /opt/etd-ds
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY constraints.txt ./
# constraints.txt names every version
# hadolint ignore=DL3013
RUN version=$(sed -n 's/^torch==//p' constraints.txt) \
 && pip install ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "torch==${version}"
COPY pyproject.toml embedded.lock README.md LICENSE ./
RUN mkdir etd_ds service && touch etd_ds/__init__.py service/__init__.py \
 && pip install -c constraints.txt -e '.[postgres,s3]' \
 && pip install --no-deps --require-hashes -r embedded.lock
COPY etd_ds etd_ds
COPY service service
COPY ds_configs ds_configs
RUN python -m compileall -q etd_ds service

# hadolint ignore=DL3006
FROM ${BASE}
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin etd \
 && install -d -o etd -g etd /data
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/etd-ds /opt/etd-ds
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp XDG_CACHE_HOME=/data/cache PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=8)"]
ENTRYPOINT ["etd-jobs"]
CMD ["serve", "--host", "0.0.0.0", "--data-dir", "/data", "--cpu"]
