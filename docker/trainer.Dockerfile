# The job service and its trainers with CUDA; also the image of one rank on a cluster (`--slurm-image`).
#   docker build -f docker/trainer.Dockerfile -t etd-ds-trainer .
# DeepSpeed's operators that we use are compiled here, so that no job compiles them when it starts.
ARG DEVEL=nvidia/cuda:13.0.1-devel-ubuntu24.04
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04

# hadolint ignore=DL3006
FROM ${DEVEL} AS build
# A further place for torch, such as that of its builds without CUDA; empty: as pip is set up, which brings CUDA.
ARG TORCH_INDEX=
# What jobs will run on. No GPU is seen here, and without this word DeepSpeed would compile for CPUs; `cpu` needs no CUDA.
ARG ACCELERATOR=cuda
# The GPUs that are compiled for: A100, RTX 30 and A40, RTX 40 and L40, H100 and H200, B200, RTX 50.
ARG TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0;10.0;12.0"
# DeepSpeed asks for this very machine's processor (-march=native). With these flags behind its own, an image that was
# made where there is AVX-512 runs where there is none, as beside many an A100. To be left empty on ARM.
ARG CPU_FLAGS="-march=x86-64-v3 -U__AVX512__ -D__AVX256__"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /opt/etd-ds
COPY constraints.txt ./
RUN version=$(sed -n 's/^torch==//p' constraints.txt) \
 && pip install ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} -c constraints.txt "torch==${version}" \
    setuptools wheel ninja packaging psutil py-cpuinfo
RUN version=$(sed -n 's/^deepspeed==//p' constraints.txt) \
 && printf '#!/bin/sh\nexec c++ "$@" %s\n' "${CPU_FLAGS}" > /usr/local/bin/portable-c++ \
 && chmod +x /usr/local/bin/portable-c++ \
 && env CXX=portable-c++ DS_ACCELERATOR="${ACCELERATOR}" DS_BUILD_FUSED_ADAM=1 DS_BUILD_CPU_ADAM=1 \
    pip install --no-build-isolation --no-binary deepspeed -c constraints.txt "deepspeed==${version}" \
 && python -c "from deepspeed.git_version_info import accelerator_name as name, installed_ops as ops; \
    assert name == '${ACCELERATOR}' and ops['fused_adam'] and ops['cpu_adam'], (name, ops)"
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
