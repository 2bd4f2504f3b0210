# syntax=docker/dockerfile:1
# Anytime with the CPU build of llama.cpp, for amd64 and arm64. This file was written with care, but not run by us.
#
#   docker build -t anytime .
#   docker run -p 127.0.0.1:8080:8080 -v anytime:/data -e ANYTIME_KEYS=me:a-long-secret anytime
#
# The server listens on all of the container's addresses and therefore does not start without an API key.

# llama.cpp's libraries, as the lock files pin them; -L copies the package's links as files.
FROM node:22-bookworm-slim AS engine
WORKDIR /src
COPY engine engine
RUN apt-get update && apt-get install --yes --no-install-recommends libffi8 libstdc++6 && rm -rf /var/lib/apt/lists/*
RUN ENGINE=cpu engine/fetch.sh && cp -RL engine/lib /engine && rm /engine/llama-addon.node

FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -o /server ./cmd/server && mkdir /empty

FROM debian:bookworm-slim
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates libffi8 libstdc++6 \
  && rm -rf /var/lib/apt/lists/*
COPY --from=engine /engine /usr/lib/anytime
COPY models/reasoner /usr/share/anytime/models/reasoner
COPY --from=build /server /usr/bin/server
COPY --from=build --chown=65532:65532 /empty /data
USER 65532:65532
WORKDIR /usr/share/anytime
ENV HOME=/data
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["/usr/bin/server", "health", "-addr", "127.0.0.1:8080"]
STOPSIGNAL SIGTERM
# What is given to `docker run` takes the place of the default model below.
ENTRYPOINT ["/usr/bin/server", "-addr", "0.0.0.0:8080", "-engine-lib", "/usr/lib/anytime", "-data", "/data"]
CMD ["-config", "models/reasoner/server.yaml"]
