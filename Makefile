# `make help` prints what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
CARGO ?= cargo
# Everything is built into one folder; `make demo` and `make test` share what they build.
export CARGO_TERM_PROGRESS_WHEN ?= auto

.PHONY: help demo demo-stop test check fmt bench generate regress cluster cluster-stop deps-build deps-demo deps-test deps-bench

help: ## print this
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: deps-demo ## a governed PostgreSQL on this machine, with an AI agent's day played against it
	@echo "== building weir, weir-sidecar and weir-collector (a few minutes the first time)"
	@$(CARGO) build --locked --bin weir --bin weir-sidecar --bin weir-collector
	@target/debug/weir demo

demo-stop: ## end what `make demo` left running
	@target/debug/weir demo --stop

test: deps-test ## every test
	$(CARGO) build --locked --workspace --bins
	@rm -f target/cluster-tests-left-out
	$(CARGO) test --locked --workspace
	@! [ -s target/cluster-tests-left-out ] || awk 'END {print NR " cluster tests did not run: " $$0 ". To run them: as root, without WEIR_SKIP_CLUSTER, make test"}' target/cluster-tests-left-out

check: deps-build ## formatting, lints, licences, generated files
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@scripts/check-dependencies.sh
	@echo "== generated files are current"
	$(CARGO) test --locked -q -p crd-types -p receipts --lib

fmt: ## format the code
	$(CARGO) fmt --all

generate: deps-build ## write the generated files again (crds/, docs/*.schema.json, expectations of odd pods, deploy/)
	WEIR_GENERATE=1 $(CARGO) test --locked -q -p crd-types -p receipts --lib
	WEIR_GENERATE=1 $(CARGO) test --locked -q -p pod-injection --test it odd_pod
	@scripts/generate-deploy.sh

bench: deps-bench ## pgbench: direct, through the sidecar, through pgbouncer; ratios
	$(CARGO) build --locked --release --bin weir-sidecar
	$(CARGO) run --locked -q -p xtask -- bench

regress: deps-demo ## PostgreSQL's own regression scripts, direct and through the sidecar
	$(CARGO) build --locked --bin weir-sidecar
	$(CARGO) run --locked -q -p xtask -- regress

cluster: deps-test ## a Kubernetes node on this machine with Weir and a governed shop, to try by hand (needs root)
	$(CARGO) build --locked --workspace --bins
	@tests/cluster/person.sh start target/debug

cluster-stop: ## end what `make cluster` left running, and remove all of it
	@tests/cluster/person.sh stop

deps-build deps-demo deps-test deps-bench: deps-%:
	@scripts/install-deps.sh $*
