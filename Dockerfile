# amsd on CUDA, with the exact versions of constraints.txt. torch's wheels bring the CUDA libraries with them; the machine
# needs NVIDIA's driver and the NVIDIA Container Toolkit.
#
#   docker build -t amsd .
#   mkdir -p runs        # amsd runs as user 1000; a folder that Docker makes belongs to root
#   docker run --gpus all --rm -v "$PWD/runs:/app/runs" -v "$HOME/.cache/huggingface:/cache/huggingface" amsd train sd15-lora
#
# With pyiqa, which may not be used commercially: docker build --build-arg EXTRAS=pyiqa,rewards -t amsd .
FROM python:3.12-slim-bookworm

ARG EXTRAS=rewards

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/amsd
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY amsd ./amsd
COPY recipes ./recipes
COPY sweeps ./sweeps
# Bytecode is written here, because user 1000 may not write it beside the packages: each start would compile them again.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir uv \
    && uv pip install --system --no-cache --compile-bytecode -c constraints.txt ".[${EXTRAS}]"

RUN useradd --create-home --uid 1000 amsd && mkdir -p /app /cache && chown amsd /app /cache
USER 1000
WORKDIR /app
ENV HF_HOME=/cache/huggingface \
    AMSD_CACHE=/cache/amsd \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

ENTRYPOINT ["amsd"]
CMD ["--help"]
