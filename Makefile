# `make demo` shows what the database does; `make test` proves it. Each installs what the machine
# lacks, builds RocksDB once into the cache folder, and builds everything else with cargo.
# Inputs: XDG_CACHE_HOME, CARGO_TARGET_DIR. Everything this file writes lies outside the checkout.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test build release tuned lint deny bench sweep replay protocol-check mutants evidence guarantees porcupine mad sim ci env prepare prepare-test clean-cache

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/quorate
CARGO_TARGET_DIR ?= $(CACHE)/target
ROCKSDB_LIB_DIR := $(shell .ci/rocksdb --path)
ROCKSDB_STATIC := 1
PATH := $(PATH):$(HOME)/.cargo/bin
export CARGO_TARGET_DIR ROCKSDB_LIB_DIR ROCKSDB_STATIC PATH

ROCKSDB := $(ROCKSDB_LIB_DIR)/librocksdb.a
QUORATE := $(CARGO_TARGET_DIR)/release/quorate
REQUIREMENTS := tests/python/requirements.txt
PYTHON_ENV := $(CACHE)/python-$(firstword $(shell cksum < $(REQUIREMENTS)))
PYTHON := $(PYTHON_ENV)/bin/python

help: ## Lists the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: release ## Three datacenters in one process: writes, reads, a datacenter lost and back.
	$(QUORATE) demo

test: release prepare-test $(PYTHON_ENV)/ready ## Every test: units, properties, tidy, real processes, a Python client.
	QUORATE_BIN=$(QUORATE) QUORATE_TEST_PYTHON=$(PYTHON) cargo test --workspace --locked

build: $(ROCKSDB) ## Builds everything for development.
	cargo build --workspace --all-targets --locked

release: $(ROCKSDB) ## Builds the binary `quorate`, optimised.
	cargo build --release --package cli --locked

lint: $(ROCKSDB) ## Formatting, clippy, documentation and dependencies; a warning is an error.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
	.ci/deny

deny: prepare ## Licences, bans and sources of all dependencies.
	.ci/deny

tuned: prepare ## Builds the binary `quorate` as it is released: laid out by what it runs under load.
	.ci/tuned

bench: tuned ## The bars of docs/performance.md, measured on this machine.
	"$$(.ci/tuned --path)" bench bars

# Seeds and minutes of a sweep: make sweep SEEDS=0..1000000 MINUTES=60
SEEDS ?= 0..1000000
MINUTES ?= 10
SIM := $(CARGO_TARGET_DIR)/release/quorate-sim

sim: $(ROCKSDB)
	cargo build --release --package sim --locked

sweep: sim ## Simulated clusters by seed, for MINUTES=10, or SEEDS=0..1000000.
	$(SIM) sweep --seeds $(SEEDS) --minutes $(MINUTES) --logs $(CACHE)/sim

# A seed, a scenario, or a scenario with the interleavings of a seed; a test of sim's suite by its name.
replay: $(if $(TEST),$(ROCKSDB),sim) ## Shows a run again: SEED=7, SCENARIO=NAME, with MUTANT=NAME; or TEST=NAME.
ifdef TEST
	cargo test --package sim --locked --test it -- --exact $(TEST)
else
	$(if $(SEED)$(SCENARIO),,$(error say what: SEED=7, SCENARIO=NAME or TEST=NAME))
	$(SIM) $(if $(SEED),run --seed $(SEED) $(SCENARIO:%=--scenario %),scenario $(SCENARIO)) \
	  $(MUTANT:%=--mutant %) --logs $(CACHE)/sim
endif

protocol-check: sim ## Every execution of a few calls, and what each deliberate bug breaks there.
	$(SIM) check --departures

mutants: sim ## Hunts every deliberate bug in the simulator.
	$(SIM) mutants

evidence: sim ## Looks for seeds that show the mutants of docs/guarantees.md, where the known ones do not any more.
	$(SIM) evidence > $(CACHE)/evidence.txt
	mv $(CACHE)/evidence.txt sim/src/guarantees/evidence.txt

guarantees: sim ## Writes docs/guarantees.md from simulated failures.
	$(SIM) guarantees > $(CACHE)/guarantees.md
	mv $(CACHE)/guarantees.md docs/guarantees.md

# Outside the default build: it alone needs Go, and fetches its one module through the proxy.
porcupine: $(ROCKSDB) ## Judges histories again with Porcupine, the referee of our checker.
	@.ci/prepare go
	export GOPATH=$(CACHE)/go GOCACHE=$(CACHE)/go/build GOMODCACHE=$(CACHE)/go/modules \
	  GOFLAGS="-mod=readonly -modcacherw -buildvcs=false" GOTOOLCHAIN=local; \
	cd sim/porcupine && go vet . && go build -o $(CACHE)/go/porcupine .
	cargo run --quiet --locked --package sim --example porcupine-histories -- 2000 1 20 | \
	  $(CACHE)/go/porcupine -linearizable 2800 -violated 500

# Outside the default build too: its own package, whose libc has no clock and no randomness.
MAD_SEEDS ?= 1 2 3
mad: $(ROCKSDB) ## Compares whole traces of a seed between processes, byte for byte.
	cargo fmt --check --manifest-path sim/mad/Cargo.toml
	CARGO_TARGET_DIR=$(CACHE)/target-mad cargo build --locked --manifest-path sim/mad/Cargo.toml
	sim/mad/compare $(CACHE)/target-mad/debug/quorate-sim-mad $(MAD_SEEDS)

ci: ## What continuous integration runs.
	.ci/run

env: ## Prints what a plain cargo call needs: eval "$$(make -s env)".
	@echo 'export CARGO_TARGET_DIR="$(CARGO_TARGET_DIR)"'
	@echo 'export ROCKSDB_LIB_DIR="$(ROCKSDB_LIB_DIR)" ROCKSDB_STATIC=$(ROCKSDB_STATIC)'
	@echo 'export QUORATE_BIN="$(QUORATE)" QUORATE_TEST_PYTHON="$(PYTHON)"'

prepare: ## Installs the compilers that the machine lacks.
	@.ci/prepare build

prepare-test:
	@.ci/prepare test

# Order-only: `prepare` always runs, and never makes the archive or the environment stale.
$(ROCKSDB): | prepare
	.ci/rocksdb

# The folder's name carries the requirements; `ready` says that the installation was completed.
$(PYTHON_ENV)/ready: | prepare-test
	rm -rf $(PYTHON_ENV)
	python3 -m venv $(PYTHON_ENV)
	$(PYTHON) -m pip install --quiet --requirement $(REQUIREMENTS)
	touch $@

clean-cache: ## Removes all that the builds left in the cache folder, RocksDB too.
	rm -rf "$(CACHE)"
