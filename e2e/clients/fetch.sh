#!/usr/bin/env bash
# Fetches the clients that the longer tests drive the server with: npm packages as node/package-lock.json pins them into
# node/node_modules, Python packages as python/requirements.txt does into python/packages. Nothing is fetched twice.
set -euo pipefail
cd "$(dirname "$0")"

say() { echo "clients: $*" >&2; }
die() { say "$*"; exit 1; }

tmp=
trap 'rm -rf "$tmp"' EXIT

if ! cmp -s node/package-lock.json node/node_modules/.lock; then
  command -v npm >/dev/null || die "npm (of Node.js 20 or newer) fetches Node's clients, and is not here (Debian, Ubuntu: sudo apt-get install npm)"
  say "fetching Node's clients"
  tmp=$(mktemp -d node/.fetch-XXXXXX)
  cp node/package.json node/package-lock.json "$tmp"
  (cd "$tmp" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2) || die "npm could not fetch them (above is why)"
  cp "$tmp/package-lock.json" "$tmp/node_modules/.lock"
  rm -rf node/node_modules
  mv "$tmp/node_modules" node/node_modules
  rm -rf "$tmp"
fi

if ! cmp -s python/requirements.txt python/packages/.lock; then
  python3 -m pip --version >/dev/null 2>&1 || die "pip (of Python 3.11 or newer) fetches Python's clients, and is not here (Debian, Ubuntu: sudo apt-get install python3-pip)"
  say "fetching Python's clients"
  tmp=$(mktemp -d python/.fetch-XXXXXX)
  python3 -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --require-hashes --only-binary :all: \
    --target "$tmp/packages" --requirement python/requirements.txt >&2 || die "pip could not fetch them (above is why)"
  cp python/requirements.txt "$tmp/packages/.lock"
  rm -rf python/packages
  mv "$tmp/packages" python/packages
fi
