# SPDX-License-Identifier: MIT
#
# Everything is built by cargo; this file gathers what goes with it. `make help` lists the targets.

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=

# rustup's cargo is in ~/.cargo/bin, the tools of the tests are in sbin: neither need be in a user's PATH.
export PATH := $(if $(findstring :$(HOME)/.cargo/bin:,:$(PATH):),,$(HOME)/.cargo/bin:)$(PATH):/usr/local/sbin:/usr/sbin:/sbin

BIN := $(or $(CARGO_TARGET_DIR),target)/release/xdp-lb
SOURCES := Cargo.toml $(wildcard Cargo.lock build.rs) $(shell find src include -type f 2>/dev/null)

# Empty for root; empty too where there is no sudo, and then the command itself says that it needs root.
SUDO := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)

# Cargo itself stays the user; only what it has built runs as root.
ifneq ($(shell id -u),0)
AS_ROOT := --config "target.'cfg(all())'.runner = ['sudo', '-E', 'env', 'PATH=$$PATH']"
endif

.DEFAULT_GOAL := all
.NOTPARALLEL:
.PHONY: all deps build demo test bench bench-table flood fuzz mutants verify status install uninstall clean fmt lint vmlinux help

all: build ## build (the default)

deps: ## install the system packages that build, test and demo need, if they are missing
	@CARGO='$(CARGO)' deploy/deps.sh

build: ## build target/release/xdp-lb
	@CARGO='$(CARGO)' deploy/deps.sh build
	$(CARGO) build --release --locked

demo: deps build ## balance real HTTP requests over three web servers in network namespaces
	@$(SUDO) deploy/demo.sh $(BIN)

test: deps ## run all tests, those that need root too (with sudo)
ifeq ($(shell id -u),0)
	$(CARGO) test --locked
else
	$(CARGO) test --locked --no-run
	@if [ -n '$(SUDO)' ] && sudo -v; then \
		set -x; $(CARGO) test --locked $(AS_ROOT) -- --include-ignored; \
	else \
		echo 'Neither root nor sudo: the tests that need root will be skipped.'; \
		set -x; $(CARGO) test --locked; \
	fi
endif

bench: deps ## measure what each packet costs, two minutes (ARGS='--quick' or parts of names)
	$(CARGO) bench --locked --bench packets $(AS_ROOT) -- $(ARGS)

bench-table: deps ## put the connection table under pressure, by simulation (half an hour; ARGS='--quick')
	$(CARGO) bench --locked --bench table $(AS_ROOT) -- $(ARGS)

flood: deps ## the floods of the tests, five times as long
	XDP_LB_FLOOD_FACTOR=50 $(CARGO) test --locked --test e2e_floods $(AS_ROOT) -- --nocapture --include-ignored

fuzz: deps ## compare program and reference model: SEED=1, N=1000000 packets (10 s after a release build)
	XDP_LB_FUZZ_SEED=$(or $(SEED),1) XDP_LB_FUZZ_PACKETS=$(or $(N),1000000) \
		$(CARGO) test --release --locked --test model $(AS_ROOT) -- --nocapture --include-ignored root_the_program_agrees

mutants: deps ## plant faults in the kernel program and see that the tests find each (an hour)
	tests/mutants.py --write docs/mutants.md

verify: build ## let the kernel's verifier check every program, without attaching any
	@$(SUDO) $(BIN) verify

status: ## show the running load balancer
	@if [ -x $(BIN) ]; then exec $(SUDO) $(BIN) status; else exec $(SUDO) xdp-lb status; fi

$(BIN): $(SOURCES)
	$(MAKE) build

install: $(BIN) ## install to $(DESTDIR)$(PREFIX), PREFIX=/usr/local
	install -d '$(DESTDIR)$(PREFIX)/sbin' '$(DESTDIR)$(PREFIX)/share/doc/xdp-lb'
	install -m 755 $(BIN) '$(DESTDIR)$(PREFIX)/sbin/xdp-lb'
	install -m 644 README.md CHANGELOG.md LICENSE LICENSE-MIT '$(DESTDIR)$(PREFIX)/share/doc/xdp-lb'

uninstall: ## remove what install installed
	rm -f '$(DESTDIR)$(PREFIX)/sbin/xdp-lb'
	rm -rf '$(DESTDIR)$(PREFIX)/share/doc/xdp-lb'

clean: ## remove everything that was built
	$(CARGO) clean

fmt: ## format the Rust code
	$(CARGO) fmt

lint: ## check format, clippy and the shell scripts, warnings are errors
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --lib --locked
	@if command -v shellcheck >/dev/null; then \
		set -x; shellcheck deploy/*.sh .ci/run; \
	else \
		echo 'SKIPPED: shellcheck is not installed, the shell scripts were not checked'; \
	fi

vmlinux: ## regenerate src/bpf/vmlinux.h from the running kernel's types (needs bpftool)
	src/bpf/trim-vmlinux.py >src/bpf/vmlinux.h.new || { rm -f src/bpf/vmlinux.h.new; exit 1; }
	mv src/bpf/vmlinux.h.new src/bpf/vmlinux.h

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | \
		while IFS="$$(printf '\t')" read -r target line; do printf '  make %-12s %s\n' "$$target" "$$line"; done
