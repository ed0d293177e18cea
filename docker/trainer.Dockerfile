# The job service and its trainers with CUDA; also the image of one rank on a cluster (`--slurm-image`).
#   docker build -f docker/trainer.Dockerfile -t etd-ds-trainer .
# DeepSpeed's operators that we use are compiled here, so that no job compiles them when it starts.
ARG DEVEL=nvidia/cuda:13.0.1-devel-ubuntu24.04
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04

# hadolint ignore=DL3006
FROM ${DEVEL} AS build
# The GPUs that are compiled for: A100, RTX 30 and A40, RTX 40 and L40, H100 and H200.
ARG TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0"
# The operators that are compiled; only the second needs no CUDA.
ARG OPERATORS="DS_BUILD_FUSED_ADAM=1 DS_BUILD_CPU_ADAM=1"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /opt/etd-ds
COPY pyproject.toml constraints.txt embedded.lock README.md LICENSE ./
RUN version=$(sed -n 's/^torch==//p' constraints.txt) \
 && pip install -c constraints.txt "torch==${version}" setuptools wheel ninja packaging psutil py-cpuinfo
RUN version=$(sed -n 's/^deepspeed==//p' constraints.txt) \
 && env ${OPERATORS} \
    pip install --no-build-isolation --no-binary deepspeed -c constraints.txt "deepspeed==${version}"
RUN mkdir etd_ds service && touch etd_ds/__init__.py service/__init__.py \
 && pip install -c constraints.txt -e '.[postgres,s3]' \
 && pip install --no-deps --require-hashes -r embedded.lock
COPY etd_ds etd_ds
COPY service service
COPY ds_configs ds_configs
RUN python -m compileall -q etd_ds service

# hadolint ignore=DL3006
FROM ${BASE}
# Triton and torch.compile call the C compiler when a kernel runs for the first time.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev python3 python3-dev \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin etd \
 && install -d -o etd -g etd /data
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/etd-ds /opt/etd-ds
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp XDG_CACHE_HOME=/data/cache TRITON_CACHE_DIR=/data/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/data/cache/inductor PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=8)"]
ENTRYPOINT ["etd-jobs"]
CMD ["serve", "--host", "0.0.0.0", "--data-dir", "/data"]
