#!/usr/bin/env bash
# Fetches the llama.cpp libraries that fit this machine and links engine/lib to them.
#
# Each build is an npm package whose version and integrity are pinned in its folder's package-lock.json. ENGINE=cpu, cuda or
# vulkan chooses one; else CUDA is taken where an NVIDIA device and the CUDA 13 runtime are, Vulkan where its loader and a
# real GPU are, and the CPU build otherwise. Only the Linux x64 CPU build has been tried by us; the script says so of the rest.
# Nothing is fetched twice. A folder engine/lib that is not a link is taken as libraries of your own and left alone.
set -euo pipefail
cd "$(dirname "$0")"

say() { echo "engine: $*" >&2; }
die() { say "$*"; exit 1; }

if [ -e lib ] && [ ! -L lib ]; then
  say "engine/lib is a folder of your own: used as it is"
  exit 0
fi

# The loader's list of libraries; empty where the system has no ldconfig, and then nothing is known of them.
known=$(PATH="$PATH:/usr/sbin:/sbin" ldconfig -p 2>/dev/null || true)
has_library() {
  [[ $known == *"$1 ("* ]] && return 0
  local dir dirs
  IFS=: read -r -a dirs <<<"${LD_LIBRARY_PATH:-}"
  for dir in ${dirs[@]+"${dirs[@]}"}; do
    [ -e "$dir/$1" ] && return 0
  done
  return 1
}

has_nvidia() { compgen -G '/dev/nvidia[0-9]*' >/dev/null || { [ -e /dev/dxg ] && has_library libcuda.so.1; }; }

# A render node of a maker of GPUs: virtual displays have nodes, too.
has_gpu() {
  local vendor
  for vendor in /sys/class/drm/renderD*/device/vendor; do
    [ -r "$vendor" ] || continue
    case "$(<"$vendor")" in 0x1002 | 0x10de | 0x8086) return 0 ;; esac
  done
  return 1
}

choose_linux_x64() {
  case "${ENGINE:-}" in
    cpu) echo linux-x64 && return ;;
    cuda | vulkan) echo "linux-x64-$ENGINE" && return ;;
    '') ;;
    *) die "ENGINE=$ENGINE is not known: want cpu, cuda or vulkan" ;;
  esac
  if has_nvidia; then
    if has_library libcudart.so.13 && has_library libcublas.so.13; then
      echo linux-x64-cuda && return
    fi
    say "an NVIDIA GPU is here, but not the CUDA 13 runtime (libcudart.so.13, libcublas.so.13) that would use it:"
    say "  install NVIDIA's packages cuda-cudart-13-0 and libcublas-13-0, then run 'make engine' again"
  fi
  if has_library libvulkan.so.1 && has_gpu; then
    echo linux-x64-vulkan
  else
    echo linux-x64
  fi
}

one_build() {
  [ -z "${ENGINE:-}" ] || [ "$ENGINE" = "$2" ] || die "ENGINE=$ENGINE: for this system there is only the $2 build"
  echo "$1"
}

case "$(uname -s)-$(uname -m)" in
  Linux-x86_64) build=$(choose_linux_x64) ;;
  Linux-aarch64 | Linux-arm64) build=$(one_build linux-arm64 cpu) ;;
  Darwin-arm64) build=$(one_build mac-arm64-metal metal) ;;
  *) die "there is no build for $(uname -s) on $(uname -m): want Linux on x64 or arm64 (WSL 2, too), or macOS on arm64." \
    "With llama.cpp v0.5.0 libraries of your own: bin/server -engine-lib DIR" ;;
esac

if [ "$(uname -s)" = Linux ]; then
  libc=$(getconf GNU_LIBC_VERSION 2>/dev/null || true) # "glibc 2.36"
  [[ $libc =~ ^glibc\ 2\.([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -ge 34 ] ||
    die "the libraries need glibc 2.34 or newer, this system has ${libc:-another C library}: use the Dockerfile"
  missing=
  if [ -n "$known" ]; then
    has_library libffi.so.8 || missing="$missing libffi8"
    has_library libstdc++.so.6 || missing="$missing libstdc++6"
  fi
  [ -z "$missing" ] || die "missing on this machine:$missing (Debian, Ubuntu: sudo apt-get install$missing; elsewhere: libffi, libstdc++)"
fi

modules=$build/node_modules
bins=$modules/@node-llama-cpp/$build/bins/$build
if ! cmp -s "$build/package-lock.json" "$modules/.lock"; then
  command -v npm >/dev/null || die "npm (of Node.js 20 or newer) fetches the llama.cpp libraries, and is not here:" \
    "Debian, Ubuntu: sudo apt-get install npm. With libraries of your own: bin/server -engine-lib DIR"
  [ "$build" = linux-x64 ] || say "note: the $build build has not been tried by us"
  say "fetching @node-llama-cpp/$build"
  # Made ready aside and moved into place whole, so that a broken download leaves nothing behind.
  tmp=$(mktemp -d "$build/.fetch-XXXXXX")
  trap 'rm -rf "$tmp"' EXIT
  cp "$build/package.json" "$build/package-lock.json" "$tmp"
  (cd "$tmp" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2) ||
    die "npm could not fetch @node-llama-cpp/$build (above is why). With libraries of your own: bin/server -engine-lib DIR"
  new=$tmp/${bins#"$build"/}
  # The libraries look for each other by versioned names, beside themselves; the server asks for the plain ones.
  for name in llama ggml; do
    for file in "$new/lib$name".*v[0-9]*; do
      [ -e "$file" ] || die "@node-llama-cpp/$build has no lib$name: not the package that is expected"
      ln -s "$(basename "$file")" "$new/lib$name.${file##*.}"
    done
  done
  cp "$tmp/package-lock.json" "$tmp/node_modules/.lock"
  rm -rf "$modules"
  mv "$tmp/node_modules" "$modules"
fi

if [ "$(readlink lib || true)" != "$bins" ]; then
  ln -sfn "$bins" lib
  say "engine/lib is the $build build"
fi
