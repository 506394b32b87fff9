# syntax=docker/dockerfile:1
# One image with the four programs and nothing else: no shell, no package manager, a user that is not root.
#
#   docker build -t registry.example.com/weir:0.1.0 .
#
# What a pod runs is said by `command`; without one it is the sidecar, because injected containers carry no command (the
# backstop policies refuse one). For a reproducible build give both bases by digest:
#   --build-arg BUILD_BASE=debian:bookworm-slim@sha256:… --build-arg RUN_BASE=gcr.io/distroless/cc-debian12@sha256:…
ARG BUILD_BASE=debian:bookworm-slim
ARG RUN_BASE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_BASE} AS build
# clang and libclang build PostgreSQL's parser; gcc, cmake and perl build aws-lc.
RUN apt-get update && apt-get install -y --no-install-recommends \
      ca-certificates clang cmake curl gcc libc6-dev libclang-dev make perl \
 && rm -rf /var/lib/apt/lists/*
ARG RUST_VERSION=1.95.0
ENV RUSTUP_HOME=/opt/rustup CARGO_HOME=/opt/cargo PATH=/opt/cargo/bin:/usr/local/bin:/usr/bin:/bin
RUN curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs \
  | sh -s -- -y --profile minimal --default-toolchain ${RUST_VERSION}
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY crates crates
# The demo of `weir` holds its shop.
COPY tests/shop tests/shop
RUN --mount=type=cache,target=/opt/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --locked --release --bin weir --bin weir-operator --bin weir-sidecar --bin weir-collector \
 && mkdir -p /out/usr/local/bin \
 && cp target/release/weir target/release/weir-operator target/release/weir-sidecar target/release/weir-collector \
       /out/usr/local/bin/ \
 && ln -s weir /out/usr/local/bin/kubectl-weir

FROM ${RUN_BASE}
COPY --from=build /out /
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/weir-sidecar"]
