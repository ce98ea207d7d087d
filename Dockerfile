#   docker build -t yolojax .                                  # CPU
#   docker build -t yolojax --build-arg EXTRAS=cuda13 .        # NVIDIA; CUDA comes with JAX's wheels, the driver from the host
#   docker run --rm -v "$PWD:/work" yolojax train --freeze 10  # with '--gpus all' on NVIDIA, '--shm-size 8g' for many workers
# docs/start.md says more. '.ci/run image' runs the RUN line on what .dockerignore lets through.

FROM python:3.12.12-slim-bookworm AS build
ARG EXTRAS=""
WORKDIR /yolojax
COPY . .
# Only the environment is kept of this stage, so no cache of pip; what is installed is this checkout.
# hadolint ignore=DL3013,DL3042
RUN python3 -m venv .venv && . .venv/bin/activate && pip install ".${EXTRAS:+[$EXTRAS]}"

FROM python:3.12.12-slim-bookworm
COPY --from=build /yolojax/.venv /yolojax/.venv
# No home folder belongs to the user, who may be any ('docker run --user').
ENV PATH=/yolojax/.venv/bin:$PATH HOME=/tmp YOLOJAX_CACHE=/tmp/yolojax
WORKDIR /work
USER 1000:1000
ENTRYPOINT ["yolojax"]
