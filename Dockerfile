# One image per recipe:  docker build --build-arg RECIPE=demo --tag appliance-demo .
# Run:                   docker run --publish 8000:8000 --volume appliance:/var/cache/appliance appliance-demo
# Override keys:         docker run … appliance-demo model.max_len=4096
# Recipes of your own:   docker run --volume ./mine:/recipes --env RECIPE=mine … (mine/recipe/mine.yaml)
# On a read-only root:   docker run --read-only … : what is written goes to /var/cache/appliance
# For a card:            docs/gpu.md, which build arguments it takes

# A base with Python 3.11 or newer and its venv, the same for building and running.
ARG BASE=python:3.12-slim
FROM ${BASE} AS build
# Where torch comes from: PyTorch's index of builds for CPUs, or empty for pip's own, whose builds bring CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Extras of pyproject.toml, as cuda.
ARG EXTRAS=
RUN python3 -m venv /opt/appliance
ENV PATH=/opt/appliance/bin:$PATH
WORKDIR /source
# Versions are those of the lock, and files those that it knows by their digests. torch, of which there are several
# builds, is installed on its own; code changes install neither again.
COPY requirements.lock requirements.hashes ./
RUN pip install --no-cache-dir --require-hashes --no-deps --requirement requirements.hashes
RUN { test -z "${TORCH_INDEX}" \
        || pip install --no-cache-dir --no-deps --retries 1 --index-url "${TORCH_INDEX}" --constraint requirements.lock torch \
        || echo "${TORCH_INDEX} cannot be reached: torch comes from pip's own index, maybe with CUDA" >&2; } \
    && pip install --no-cache-dir --constraint requirements.lock torch
# What compiles the kernels for the CPU: the image has these and not the compiler.
# hadolint ignore=DL3008
RUN command -v cc > /dev/null \
    || { apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; }
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY conf conf
COPY recipes recipes
COPY engine engine
COPY appliance appliance
RUN pip install --no-cache-dir --no-build-isolation --constraint requirements.lock ".${EXTRAS:+[${EXTRAS}]}" \
    && python3 -c "from engine.native.loading import variants; print(variants(everywhere=True))"

# For a card: the recipe's kernels, compiled here, so that the image has them and nothing that compiles.
FROM build AS kernels
ARG RECIPE=demo
# Architectures, as 9.0a or "8.9 9.0a"; empty compiles nothing.
ARG KERNELS_ARCH=
# Keys that other kernels go with, as engine.kv_dtype=fp8.
ARG KERNELS_WITH=
# hadolint ignore=DL3008
RUN mkdir /opt/kernels \
    && { test -z "${KERNELS_ARCH}" || command -v c++ > /dev/null \
        || { apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*; }; }
# hadolint ignore=SC2086
RUN test -z "${KERNELS_ARCH}" \
    || { pip install --no-cache-dir --no-build-isolation --constraint requirements.lock ".[cuda-build]" \
        && appliance recipe="${RECIPE}" engine=cuda ${KERNELS_WITH} task=kernels "kernels.arch='${KERNELS_ARCH}'" \
            kernels.folder=/opt/kernels; }

FROM ${BASE}
ARG RECIPE=demo
ARG KERNELS_ARCH=
LABEL org.opencontainers.image.title="appliance-${RECIPE}" \
    org.opencontainers.image.description="Serves a multimodal language model from one YAML recipe" \
    org.opencontainers.image.licenses="Apache-2.0"
# Some bases have a user of that number already.
RUN { getent group 1000 > /dev/null || groupadd --gid 1000 appliance; } \
    && { getent passwd 1000 > /dev/null || useradd --create-home --uid 1000 --gid 1000 appliance; } \
    && install --directory --owner 1000 --group 1000 /var/cache/appliance /recipes
COPY --from=build /opt/appliance /opt/appliance
COPY --from=kernels /opt/kernels /opt/kernels
# What libraries keep goes to the volume too: the root may be read-only.
ENV PATH=/opt/appliance/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/cache/appliance \
    HF_HOME=/var/cache/appliance/huggingface \
    TRITON_CACHE_DIR=/var/cache/appliance/triton \
    FLASHINFER_WORKSPACE_BASE=/var/cache/appliance \
    APPLIANCE_RECIPES=/recipes \
    KERNELS_ARCH=${KERNELS_ARCH} \
    RECIPE=${RECIPE}
# A recipe that does not compose fails the build, not the start.
RUN appliance recipe="${RECIPE}" server=container --cfg job > /dev/null
# By number: an orchestrator that asks for a user who is not root can tell.
USER 1000:1000
WORKDIR /var/cache/appliance
VOLUME /var/cache/appliance
EXPOSE 8000
# Asks /readyz wherever the recipe and the arguments have it listen; a first start may have to fetch weights.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m \
    CMD ["python", "-m", "appliance.health"]
ENTRYPOINT ["sh", "-c", "exec appliance recipe=\"$RECIPE\" server=container logging=json cache.folder=/var/cache/appliance ${KERNELS_ARCH:+kernels.folder=/opt/kernels} \"$@\"", "appliance"]
