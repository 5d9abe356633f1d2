# One image per recipe:  docker build --build-arg RECIPE=demo --tag appliance-demo .
# Run:                   docker run --publish 8000:8000 --volume appliance:/var/cache/appliance appliance-demo
# Override keys:         docker run … appliance-demo model.max_len=4096
# Recipes of your own:   docker run --volume ./mine:/recipes --env RECIPE=mine … (mine/recipe/mine.yaml)

ARG PYTHON=3.12-slim
FROM python:${PYTHON} AS build
RUN python -m venv /opt/appliance
ENV PATH=/opt/appliance/bin:$PATH
WORKDIR /source
# Versions are those of the lock, torch's own keeps CUDA packages out; installed on its own so that code changes do not
# install it again.
COPY requirements.lock ./
RUN pip install --no-cache-dir --constraint requirements.lock torch
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY conf conf
COPY recipes recipes
COPY engine engine
COPY appliance appliance
RUN pip install --no-cache-dir --constraint requirements.lock .

FROM python:${PYTHON}
ARG RECIPE=demo
RUN groupadd --gid 1000 appliance \
    && useradd --create-home --uid 1000 --gid 1000 appliance \
    && install --directory --owner appliance --group appliance /var/cache/appliance /recipes
COPY --from=build /opt/appliance /opt/appliance
ENV PATH=/opt/appliance/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    APPLIANCE_RECIPES=/recipes \
    RECIPE=${RECIPE}
# A recipe that does not compose fails the build, not the start.
RUN appliance recipe="${RECIPE}" server=container --cfg job > /dev/null
# By number: an orchestrator that asks for a user who is not root can tell.
USER 1000:1000
WORKDIR /home/appliance
VOLUME /var/cache/appliance
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
ENTRYPOINT ["sh", "-c", "exec appliance recipe=\"$RECIPE\" server=container logging=json cache.folder=/var/cache/appliance \"$@\"", "appliance"]
