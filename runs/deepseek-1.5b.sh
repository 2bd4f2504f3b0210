#!/bin/sh
# BRPO on DeepSeek-R1-Distill-Qwen-1.5B on one GPU, at budgets up to 8k or 16k tokens: runs/deepseek-1.5b.sh 8k|16k. It has not been run
# at full size by us; runs/deepseek-1.5b-*.yaml reckon what it needs. Run again, it goes on where it was stopped.
#
# What must be there before:
#   bin/train     built for XLA: CGO_ENABLED=1 GOEXPERIMENT=simd go build -tags xla -o bin/train ./cmd/train
#   engine/lib    llama.cpp for CUDA: ENGINE=cuda make engine
#   PLUGIN        XLA's plugin for CUDA, of PJRT API 0.104 or newer: xla_cuda_plugin.so of PyPI's jax-cuda13-pjrt, with the CUDA 13 libraries
#   DATA          problems as JSON lines {"id", "problem", "answers"}; the paper's are the 40,000 of DeepScaleR-Preview, of which
#                 jq -c '.[] | {problem, answers: [.answer]}' deepscaler.json makes such lines
#   MODEL         its GGUF in F16: a file, or one on the hub, which is fetched
set -eu
cd "$(dirname "$0")/.."
case "${1:-}" in 8k | 16k) ;; *) echo "usage: $0 8k|16k" >&2; exit 2 ;; esac
PLUGIN=${PLUGIN:?name the plugin of XLA for CUDA}
DATA=${DATA:?name the file of problems}
MODEL=${MODEL:-hf.co/unsloth/DeepSeek-R1-Distill-Qwen-1.5B-GGUF:F16}
WORK=${WORK:-data/deepseek-1.5b-$1}

bin/train doctor -xla "$PLUGIN,preallocate=false"
exec bin/train rl -config "runs/deepseek-1.5b-$1.yaml" -backend "xla:$PLUGIN,preallocate=false" -model "$MODEL" -data "$DATA" -out "$WORK"
