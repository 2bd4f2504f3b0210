#!/bin/sh
# The project's own reasoner, from nothing: examples, a model with random weights, fine-tuning on the teacher's thoughts in two stages,
# BRPO on its own and the mean of its last adapters, the evaluation of both on the puzzles held out; then the model, the adapter and their reports in models/reasoner.
#
# On one core with XLA's CPU plugin (BACKEND=xla:PLUGIN.so, with a bin/train that was built with cgo and -tags xla) fine-tuning takes 45
# minutes and BRPO an hour; with the Go backend about twice that. Run again, it goes on where it was stopped.
# These may be set; what was begun with some goes on with the same only:
set -eu
cd "$(dirname "$0")/.."
WORK=${WORK:-data/reasoner} # weights, checkpoints and rollouts
OUT=${OUT:-models/reasoner}
THREADS=${THREADS:-1}
BACKEND=${BACKEND:-go}

[ "$BACKEND" != go ] || make -s train
export GOMAXPROCS="$((THREADS + 1))"
mkdir -p "$WORK" "$OUT"

# Each stage makes its result under another name, so that one that is there is whole.
if [ ! -e "$WORK/new.gguf" ]; then
	bin/train generate -sft -n 20000 -seed 1 >"$WORK/examples.part"
	mv "$WORK/examples.part" "$WORK/examples.jsonl"
	bin/train new -data "$WORK/examples.jsonl" -out "$WORK/new.gguf"
fi
learn() {
	[ -e "$WORK/$1/model.gguf" ] ||
		bin/train sft -config "runs/reasoner-$1.yaml" -backend "$BACKEND" -threads "$THREADS" -model "$2" -out "$WORK/$1"
}
learn sft "$WORK/new.gguf"
learn sft2 "$WORK/sft/model.gguf"
model=$WORK/sft2/model.gguf
bin/train rl -config runs/reasoner-rl.yaml -backend "$BACKEND" -threads "$THREADS" -model "$model" -out "$WORK/rl"

cp "$model" "$OUT/reasoner.gguf"
# shellcheck disable=SC2046 # the files of a run have no spaces
bin/train average -out "$OUT/reasoner-brpo.gguf" $(ls "$WORK"/rl/adapter-*.gguf | tail -n 24)
evaluate() {
	bin/train eval -config runs/reasoner-eval.yaml -threads "$THREADS" -model "$OUT/reasoner.gguf" "$@"
}
evaluate -out "$WORK/eval-base"
evaluate -adapter "$OUT/reasoner-brpo.gguf" -against "$WORK/eval-base/report.json" -out "$WORK/eval-brpo"
for which in base brpo; do
	for kind in json png html; do
		cp "$WORK/eval-$which/report.$kind" "$OUT/$which.$kind"
	done
done
