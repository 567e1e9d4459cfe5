# walrelay: `make demo` tells the story on throw-away servers, `make test` proves it on real ones. Both bring what they need.
SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)
# Three with servers fill two processors; those with a broker have a Java machine each, and wait more.
TEST_THREADS ?= 3
KAFKA_TEST_THREADS ?= 3

.PHONY: help demo demo-kafka check test bench build clean-servers

help:
	@echo "make demo    two real servers, a copy, a stream, a synchronous commit, a crash: five minutes with the build"
	@echo "make demo-kafka   the same towards a real Kafka broker: events, a commit that waits for it, crashes (needs Java)"
	@echo "make test    everything, on real servers of versions 14 to 18"
	@echo "make check   format, lints, documentation and the fast tests: needs no server"
	@echo "make bench   speed and memory as ratios against the peers, in one run"

build:
	@scripts/bootstrap
	cargo build --release --locked

demo: build
	@target/release/walrelay demo --probe >/dev/null 2>&1 || scripts/fetch-servers 18
	@target/release/walrelay demo

demo-kafka: build
	@target/release/walrelay demo --probe >/dev/null 2>&1 || scripts/fetch-servers 18
	@target/release/walrelay demo --kafka --probe >/dev/null 2>&1 || scripts/fetch-kafka
	@target/release/walrelay demo --kafka

check:
	@scripts/bootstrap
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --no-default-features --lib --bins -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet
	cargo test --locked --quiet --lib --test architecture --test pgoutput

test: check
	@scripts/fetch-servers all
	@scripts/fetch-kafka
	@[ -n "$${WALRELAY_NO_DEBEZIUM:-}" ] || scripts/fetch-debezium
	cargo test --locked --test relay -- --test-threads=$(TEST_THREADS)
	cargo test --locked --test kafka -- --test-threads=$(KAFKA_TEST_THREADS)

bench:
	@scripts/bootstrap
	@scripts/fetch-servers $${WALRELAY_BENCH_VERSION:-18} tools
	@case " $${WALRELAY_BENCH:-k} " in *" "[kK]*) scripts/fetch-kafka && { [ -n "$${WALRELAY_NO_DEBEZIUM:-}" ] || scripts/fetch-debezium; } \
	  || echo "make bench: the cases k and k2 go without what could not be fetched, and say so";; esac
	cargo bench --locked --bench relay
	@[ -n "$${WALRELAY_BENCH_QUICK:-}$${WALRELAY_BENCH:-}" ] || cargo bench --locked --bench stages

clean-servers:
	rm -rf .servers
