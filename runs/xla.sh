#!/usr/bin/env bash
# Fetches XLA's plugin for CPUs into bin, and prints its path: with a bin/train built with cgo and -tags xla it is a backend of the
# trainer (-backend xla:PATH). The wheel's SHA-256 is pinned below; under its final name the plugin is whole or absent. It is for Linux
# x64 alone.
set -euo pipefail
cd "$(dirname "$0")/.."

plugin=bin/pjrt_c_api_cpu_plugin.so
size=201600336 # bytes
die() { echo "xla: $*" >&2; exit 1; }

if [ ! -f "$plugin" ] || [ "$(wc -c <"$plugin")" -ne $size ]; then
  [ "$(uname -sm)" = 'Linux x86_64' ] || die "the plugin is for Linux x64, and this is $(uname -sm)"
  python3 -m pip --version >/dev/null 2>&1 || die "python3 with pip fetches the plugin, and is not here (Debian, Ubuntu: sudo apt-get install python3-pip)"
  mkdir -p bin
  tmp=$(mktemp -d bin/.xla-XXXXXX)
  trap 'rm -rf "$tmp"' EXIT
  echo "xla: fetching the plugin, about 63 MB" >&2
  echo 'lammps-jax-pjrt-cpu==0.11.2 --hash=sha256:1319390d948b39f69f7dade496b7c385149d9ca6097a6b62114da113216d9ad1' >"$tmp/requirements.txt"
  python3 -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps --require-hashes --only-binary :all: \
    --dest "$tmp" --requirement "$tmp/requirements.txt" >&2 || die "PyPI was not reached, or what it sent is not what is pinned (above is why)"
  python3 -m zipfile -e "$tmp"/*.whl "$tmp"
  mv "$tmp/lammps_jax_pjrt_cpu/pjrt_c_api_cpu_plugin.so" "$plugin"
fi
echo "$PWD/$plugin"
