# Tollbar. `make run` answers a first request; `make test` is what CI runs.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
CARGO ?= cargo
VENV := .venv
PYTHON := $(VENV)/bin/python

# Tests of random inputs take the same ones each time.
SEED := 20261122

.PHONY: run test unit random sdk bench loadtest release fmt lint doc tools clean

## run: from a fresh clone to an answered request, with no key and no network
run: tools
	$(CARGO) run --profile $(or $(PROFILE),dev) --bin tollbar -- demo

## test: everything that must hold, as CI runs it
test: tools lint doc unit sdk

unit: tools
	PROPTEST_RNG_SEED=$(SEED) $(CARGO) test --workspace

## random: hunts with random inputs, others each time (CASES=20000, half an hour)
random: tools
	PROPTEST_CASES=$(or $(CASES),20000) CARGO_PROFILE_DEV_OPT_LEVEL=2 $(CARGO) test --lib -- \
		wire::tests config::tests::alike

## sdk: the official SDKs against the real binary
sdk: tools $(VENV)/.ready
	$(CARGO) build --workspace --bins
	$(PYTHON) -m pytest -q tests/sdk

lint: tools
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

doc: tools
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet

## bench: how long the operations of a request take, and how many instructions
bench: tools
	$(CARGO) bench --bench hot_path
	CARGO="$(CARGO)" python3 benches/instructions.py
	python3 benches/report.py

## loadtest: what Tollbar costs on this machine, beside a bare Pingora proxy (ARGS=--quick)
loadtest: tools
	$(CARGO) build --release --package tollbar --bins
	$(CARGO) build --release --package tollbar-loadtest --bins
	target/release/loadtest $(ARGS)

## release: the fastest binary, target/trained/release/tollbar, built for what the load tests do
release: tools
	CARGO="$(CARGO)" ./build/release.sh

fmt:
	$(CARGO) fmt --all

## tools: what the build needs besides Rust and a C compiler, installed where it is missing
tools:
	@./build/tools.sh

$(VENV)/.ready: tests/sdk/requirements.txt
	@./build/venv.sh $(VENV) tests/sdk/requirements.txt
	@touch $@

clean:
	$(CARGO) clean
	rm -rf $(VENV)
