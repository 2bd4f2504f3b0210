#!/usr/bin/env bash
# Fetches what drives the page in a browser, as package-lock.json pins it, into node_modules, once. The browser is the machine's own.
set -euo pipefail
cd "$(dirname "$0")"

die() { echo "browser: $*" >&2; exit 1; }

! cmp -s package-lock.json node_modules/.lock || exit 0
command -v npm >/dev/null || die "npm (of Node.js 20 or newer) fetches it, and is not here (Debian, Ubuntu: sudo apt-get install npm)"
tmp=$(mktemp -d .fetch-XXXXXX)
trap 'rm -rf "$tmp"' EXIT
cp package.json package-lock.json "$tmp"
(cd "$tmp" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2) || die "npm could not fetch it (above is why)"
cp "$tmp/package-lock.json" "$tmp/node_modules/.lock"
rm -rf node_modules
mv "$tmp/node_modules" node_modules
