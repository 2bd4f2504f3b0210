#!/bin/sh
# The project's own reasoner, from nothing: examples, a model with random weights, fine-tuning on the teacher's thoughts, BRPO on its
# own, the evaluation of both on the puzzles held out; then the model, the adapter and their curves in models/reasoner.
#
# It takes some two hours on one core with XLA's CPU plugin (BACKEND=xla:PLUGIN.so, a bin/train built with cgo and -tags xla), about twice
# that without. Run again, it goes on where it was stopped.
# These may be set; what was begun with some goes on with the same only:
set -eu
cd "$(dirname "$0")/.."
WORK=${WORK:-data/reasoner} # weights, checkpoints and rollouts
OUT=${OUT:-models/reasoner}
THREADS=${THREADS:-1}
BACKEND=${BACKEND:-go}

[ "$BACKEND" != go ] || make -s train
export GOMAXPROCS="$THREADS"
mkdir -p "$WORK" "$OUT"
model=$WORK/sft/model.gguf

# Files are made under another name, so that one that is there is whole.
if [ ! -e "$WORK/new.gguf" ]; then
	bin/train generate -sft -n 20000 -seed 1 >"$WORK/examples.part"
	mv "$WORK/examples.part" "$WORK/examples.jsonl"
	bin/train new -data "$WORK/examples.jsonl" -out "$WORK/new.gguf"
fi
[ -e "$model" ] ||
	bin/train sft -config runs/reasoner-sft.yaml -backend "$BACKEND" -threads "$THREADS" -model "$WORK/new.gguf" -out "$WORK/sft"
bin/train rl -config runs/reasoner-rl.yaml -backend "$BACKEND" -threads "$THREADS" -model "$model" -out "$WORK/rl"

cp "$model" "$OUT/reasoner.gguf"
cp "$(ls "$WORK"/rl/adapter-*.gguf | tail -n 1)" "$OUT/reasoner-brpo.gguf"
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
