#!/usr/bin/env bash
# Builds Ollama, links it into engine/ollama and prints the path of its binary: a real one, for the tests that want it. Minutes on two
# cores, once for a user: it is kept in the user's cache. It needs Go, a C++ compiler and the headers that Debian has in
# nlohmann-json3-dev and libstb-dev. CPU only.
set -euo pipefail
cd "$(dirname "$0")"

version=v0.17.4
sum=h1:X3KNm9x4BlHqk/AXMGtC7pBAFd46nmJmy8yDaBZLo9s=
malgo=v0.11.24 # a Go module that carries miniaudio.h
malgo_sum=h1:hHcIJVfzWcEDHFdPl5Dl/CUSOjzOleY0zzAV8Kx+imE=
binary=$PWD/ollama/ollama-$version
cache=${XDG_CACHE_HOME:-$HOME/.cache}/anytime

say() { echo "ollama: $*" >&2; }
die() { say "$*"; exit 1; }

mkdir -p ollama "$cache"
if [ ! -e "$binary" ] && [ -x "$cache/ollama-$version" ]; then
  ln -sfn "$cache/ollama-$version" "$binary"
fi
if [ -x "$binary" ]; then
  echo "$binary"
  exit 0
fi

for tool in go g++; do
  command -v $tool >/dev/null || die "$tool is not here, and builds Ollama (Debian, Ubuntu: sudo apt-get install ${tool/#go/golang})"
done
for header in nlohmann/json.hpp stb/stb_image.h; do
  echo "#include <$header>" | g++ -fsyntax-only -x c++ - 2>/dev/null ||
    die "$header is not here (Debian, Ubuntu: sudo apt-get install nlohmann-json3-dev libstb-dev)"
done

# module PATH VERSION SUM prints the folder of a module that is what is pinned here.
module() {
  local json dir got
  json=$(cd / && go mod download -json "$1@$2") || die "$1@$2 was not to be had: $json"
  got=$(sed -n 's/.*"Sum": "\(.*\)".*/\1/p' <<<"$json")
  [ "$got" = "$3" ] || die "$1@$2 has the sum $got instead of $3"
  dir=$(sed -n 's/.*"Dir": "\(.*\)".*/\1/p' <<<"$json")
  echo "$dir"
}
module github.com/ollama/ollama $version $sum >/dev/null
audio=$(module github.com/gen2brain/malgo $malgo $malgo_sum)

tmp=$(mktemp -d "$cache/.build-XXXXXX")
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$cache/include" # the same for each build, so that Go's cache knows what a build that was broken off has compiled
ln -sfn "$audio" "$cache/include/miniaudio"

# Without the CPU's vector instructions it is several times slower; those of x86-64-v3 are in every x64 CPU since 2015.
flags="-O2 -I$cache/include"
if grep -qw avx2 /proc/cpuinfo 2>/dev/null && [ "$(uname -m)" = x86_64 ]; then
  flags+=" -march=x86-64-v3"
fi
say "building $version: this takes minutes, once"
(cd / && CGO_ENABLED=1 GOFLAGS= GOBIN="$tmp" CGO_CFLAGS=$flags CGO_CXXFLAGS=$flags \
  go install -trimpath -ldflags "-s -w -X github.com/ollama/ollama/version.Version=${version#v}" \
  "github.com/ollama/ollama@$version" >&2) || die "Ollama was not built (above is why)"
mv "$tmp/ollama" "$cache/ollama-$version" # whole or absent
ln -sfn "$cache/ollama-$version" "$binary"
echo "$binary"
