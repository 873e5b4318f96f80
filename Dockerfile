# latentsynth as a command, for a user without rights. Built with:
#   docker build --tag latentsynth .
#   docker build --tag latentsynth --build-arg BASE=pytorch/pytorch:TAG .     any image with Python 3.11, pip and, for a GPU, CUDA
# torch as pip brings it on Linux has CUDA with it, so the first serves CPUs and, with `docker run --gpus all`, GPUs. Another index for pip
# (one of torch for CPUs alone is far smaller): --build-arg PIP_EXTRA_INDEX_URL=...
# Scans are mounted: docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" latentsynth demo --out demo
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_BREAK_SYSTEM_PACKAGES=1

WORKDIR /src
COPY constraints.txt ./
RUN python3 -m pip install --no-cache-dir --constraint constraints.txt torch
COPY . .
RUN python3 -m pip install --no-cache-dir --constraint constraints.txt . \
    && useradd --create-home --uid 1000 latentsynth \
    && mkdir /work && chown latentsynth /work

USER latentsynth
# Where libraries keep what they draw with; --user gives ids that have no home.
ENV HOME=/tmp HF_HUB_OFFLINE=1 MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /work
ENTRYPOINT ["latentsynth"]
CMD ["--help"]
