#!/bin/sh
# The paper's comparison in small: every recipe from one base model, three seeds of GRPO and BRPO-uniform, one of the others; each run
# trained, and the mean of its last adapters evaluated on the puzzles held out; then tables and figures in runs/comparison.
#
#   runs/comparison.sh              all of it, half a day on one core, with XLA a third of that
#   runs/comparison.sh -minutes 30  stop cleanly after 30 minutes
#
# Run again, it goes on where it was stopped, by the clock, by Ctrl-C or by a crash. The report is of the runs that are finished.
# These may be set; what was begun with some goes on with the same only:
set -eu
cd "$(dirname "$0")/.."
MODEL=${MODEL:-models/reasoner/reasoner.gguf}
WORK=${WORK:-data/comparison} # weights and rollouts
OUT=${OUT:-runs/comparison}
THREADS=${THREADS:-1}
TRAIN=${TRAIN:-bin/train} # a trainer that is there already, such as one built for XLA
RL_ARGS=${RL_ARGS:-}      # further flags of train rl, such as -backend xla:PLUGIN.so
EVAL_ARGS=${EVAL_ARGS:-}
# RECIPE-SEED each. Once $WORK/base is there, several scripts may run at once, each with jobs of its own.
JOBS=${JOBS:-grpo-1 brpo-uniform-1 brpo-base-1 grpo-decouple-1 grpo-linear-1 grpo-vr-1 brpo-linear-1 grpo-2 brpo-uniform-2 grpo-3 brpo-uniform-3}
minutes=0
case $#,${1:-},${2:-} in
0,*) ;;
2,-minutes,*[!0-9]* | 2,-minutes,) echo "$0: -minutes is '$2': it must be a number" >&2; exit 2 ;;
2,-minutes,*) minutes=$2 ;;
*) echo "usage: $0 [-minutes N]" >&2; exit 2 ;;
esac
end=$(($(date +%s) + minutes * 60))

report() {
	"$TRAIN" compare -out "$OUT" "$WORK"
}

# run runs a command until the time is up, when it makes the report of what there is.
run() {
	if [ "$minutes" -eq 0 ]; then
		"$@"
		return
	fi
	left=$((end - $(date +%s)))
	code=124
	[ "$left" -le 0 ] || { code=0; timeout --foreground -s INT -k 120 "$left" "$@" || code=$?; }
	if [ "$code" -eq 124 ]; then
		echo "The time is up; $0 goes on from here."
		report || true
		exit 0
	fi
	[ "$code" -eq 0 ] || exit "$code"
}

evaluate() {
	run "$TRAIN" eval -config runs/comparison-eval.yaml -model "$MODEL" -threads "$THREADS" $EVAL_ARGS "$@"
}

[ "$TRAIN" != bin/train ] || make -s train
export GOMAXPROCS="$THREADS"
evaluate -out "$WORK/base"
for job in $JOBS; do
	[ ! -e "$WORK/$job/eval/report.json" ] || continue
	echo "== $job"
	run "$TRAIN" rl -config runs/comparison.yaml -model "$MODEL" -threads "$THREADS" -recipe "${job%-*}" -seed "${job##*-}" \
		-out "$WORK/$job" $RL_ARGS
	"$TRAIN" average -out "$WORK/$job/mean.gguf" "$WORK/$job"/adapter-*.gguf
	evaluate -adapter "$WORK/$job/mean.gguf" -out "$WORK/$job/eval"
	rm -f "$WORK/$job"/rollouts-*.jsonl
done
report
