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

# Under PREFIX, beside the program, the man pages and the documentation.
BASH_COMPLETION := share/bash-completion/completions/xdp-lb
ZSH_COMPLETION := share/zsh/site-functions/_xdp-lb
FISH_COMPLETION := share/fish/vendor_completions.d/xdp-lb.fish
UNIT := lib/systemd/system/xdp-lb.service
INSTALLED := $(BASH_COMPLETION) $(ZSH_COMPLETION) $(FISH_COMPLETION) $(UNIT)
EXTRAS := $(or $(CARGO_TARGET_DIR),target)/install

# Empty for root; empty too where there is no sudo, and then the command itself says that it needs root.
SUDO := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)

# Cargo itself stays the user; only what it has built runs as root.
ifneq ($(shell id -u),0)
AS_ROOT := --config "target.'cfg(all())'.runner = ['sudo', '-E', 'env', 'PATH=$$PATH']"
endif

.DEFAULT_GOAL := all
.NOTPARALLEL:
.PHONY: all deps deps-all build demo test test-all bench bench-table flood fuzz mutants verify status install uninstall clean fmt lint vmlinux help

all: build ## build (the default)

deps: ## install the system packages that build, test and demo need, if they are missing
	@CARGO='$(CARGO)' deploy/deps.sh

deps-all: ## and those that only make test-all needs
	@CARGO='$(CARGO)' deploy/deps.sh all

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

# The first line again in release, where what is promised of a release build is measured.
test-all: deps-all test ## make test, and what takes long: 200 changes under load, 2,000 backends checked, alerts, long floods, fuzz (half an hour)
	$(CARGO) test --release --locked --test e2e_live --test e2e_scale --test health_load $(AS_ROOT) -- --nocapture --include-ignored
	$(CARGO) test --locked --test dashboard --test e2e_prometheus $(AS_ROOT) -- --nocapture --include-ignored
	$(MAKE) flood
	$(MAKE) fuzz N=10000000

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

# What the program knows of itself, and the unit with the path that it is installed to.
install: $(BIN) ## install to $(DESTDIR)$(PREFIX), PREFIX=/usr/local: program, man pages, completions, unit, examples
	rm -rf '$(EXTRAS)'
	mkdir -p '$(EXTRAS)/man'
	$(BIN) man --dir '$(EXTRAS)/man'
	for shell in bash zsh fish; do $(BIN) completions $$shell >'$(EXTRAS)/'$$shell || exit 1; done
	sed 's|/usr/local/|$(PREFIX)/|g' deploy/xdp-lb.service >'$(EXTRAS)/xdp-lb.service'
	install -d $(foreach dir,sbin $(dir $(INSTALLED)) share/man/man1 share/doc/xdp-lb/examples,'$(DESTDIR)$(PREFIX)/$(dir)')
	install -m 755 $(BIN) '$(DESTDIR)$(PREFIX)/sbin/xdp-lb'
	install -m 644 '$(EXTRAS)'/man/*.1 '$(DESTDIR)$(PREFIX)/share/man/man1'
	install -m 644 '$(EXTRAS)/bash' '$(DESTDIR)$(PREFIX)/$(BASH_COMPLETION)'
	install -m 644 '$(EXTRAS)/zsh' '$(DESTDIR)$(PREFIX)/$(ZSH_COMPLETION)'
	install -m 644 '$(EXTRAS)/fish' '$(DESTDIR)$(PREFIX)/$(FISH_COMPLETION)'
	install -m 644 '$(EXTRAS)/xdp-lb.service' '$(DESTDIR)$(PREFIX)/$(UNIT)'
	install -m 644 README.md CHANGELOG.md LICENSE LICENSE-MIT '$(DESTDIR)$(PREFIX)/share/doc/xdp-lb'
	install -m 644 deploy/xdp-lb.toml deploy/prometheus/*.yml deploy/grafana/xdp-lb.json \
		'$(DESTDIR)$(PREFIX)/share/doc/xdp-lb/examples'

uninstall: ## remove what install installed
	rm -f $(foreach file,sbin/xdp-lb $(INSTALLED),'$(DESTDIR)$(PREFIX)/$(file)')
	rm -f '$(DESTDIR)$(PREFIX)'/share/man/man1/xdp-lb.1 '$(DESTDIR)$(PREFIX)'/share/man/man1/xdp-lb-*.1
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
