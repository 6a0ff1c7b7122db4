# docker build --build-arg PLATFORM=cuda --tag edm-jax .
# docker run --gpus all --volume runs:/runs edm-jax \
#   python experiments/train.py --config=configs/config_g.py:digits --run=/runs/g
FROM python:3.11.14-slim-bookworm

# cpu, cuda or tpu. CUDA's libraries are packages: the host needs a driver alone.
ARG PLATFORM=cpu

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

RUN groupadd --gid 1000 edm \
    && useradd --uid 1000 --gid edm --create-home edm \
    && install --directory --owner=edm --group=edm /edm /runs

WORKDIR /edm

# Packages first: they change seldom. The project is installed where it lies.
COPY LICENSE README.md constraints.txt pyproject.toml ./
COPY edm_jax/__init__.py edm_jax/
RUN case "$PLATFORM" in \
        cpu) project=. ;; \
        cuda | tpu) project=".[$PLATFORM]" ;; \
        *) echo "PLATFORM=$PLATFORM, but takes one of cpu, cuda, tpu." >&2; exit 1 ;; \
    esac \
    && python -m pip install --constraint constraints.txt --editable "$project"

COPY --chown=edm:edm benchmarks benchmarks
COPY --chown=edm:edm configs configs
COPY --chown=edm:edm experiments experiments
COPY --chown=edm:edm edm_jax edm_jax

USER 1000:1000
CMD ["python", "experiments/train.py", "--help"]
