#!/bin/sh
# A few minutes of BRPO on the project's own reasoner, from rollouts to the adapter live in a server: its accuracy over budgets before,
# rounds of training, the same after, and the adapter pushed into a running server, which answers with it. Only what is said after no thought or
# a short one is trained: that is cheap, so that there can be many answers of each, and takes the fewest rounds to become better.
set -eu
cd "$(dirname "$0")/.."
MODEL=${MODEL:-models/reasoner/reasoner.gguf}
WORK=${WORK:-data/demo}
ROUNDS=${ROUNDS:-12}

evaluate() {
	bin/train eval -model "$MODEL" -threads 1 -n 0 -budgets 0,16,32,64 -temperature 0.6 -summary-tokens 24 -ctx 512 -sequences 4 \
		-flash-attention off -curve off "$@"
}
echo "== before"
evaluate -out "$WORK/before"
echo "== $ROUNDS rounds of BRPO"
bin/train rl -model "$MODEL" -threads 1 -countdown train -recipe brpo-uniform -answers-only -budgets 0,16,32 -traces 2 -summaries 16 \
	-batch 16 -mini-batch 16 -rounds "$ROUNDS" -summary-tokens 24 -lr 3e-3 -warmup 2 -kl 0.01 -rank 8 -ctx 512 -sequences 4 -flash-attention off -out "$WORK/rl"
adapter=$WORK/rl/mean.gguf
# shellcheck disable=SC2046 # the files of a run have no spaces
bin/train average -out "$adapter" $(ls "$WORK"/rl/adapter-*.gguf | tail -n $(((ROUNDS + 1) / 2)))
echo "== after"
evaluate -adapter "$adapter" -against "$WORK/before/report.json" -out "$WORK/after"

echo "== live"
bin/server -addr 127.0.0.1:0 -model "$MODEL" -threads 1 -store memory -adapters "$WORK/adapters" -log-level error >"$WORK/server.log" &
server=$!
trap 'kill $server 2>/dev/null || true; wait $server 2>/dev/null || true' EXIT
url=
while [ -z "$url" ]; do
	kill -0 $server 2>/dev/null || { cat "$WORK/server.log"; exit 1; }
	url=$(grep -o 'http://[0-9.:]*' "$WORK/server.log" | head -n 1) || sleep 0.2
done
bin/train push -server "$url" -adapter "$adapter" -name demo -default
bin/server ask -server "$url" -budget 192 "Use the numbers 3, 7 and 8, each once, with + - * / to make 29."
echo "The curves: $WORK/before/report.html and $WORK/after/report.html"
