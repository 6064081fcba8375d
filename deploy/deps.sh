#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Install the system packages that building, the tests and the demo need, if they are missing; nothing else.
# Needs no network and no root where everything is there.
#
#   deploy/deps.sh                       find out what is missing and install it (with sudo if not root)
#   deploy/deps.sh build                 only what building needs
#   deploy/deps.sh all                   and what only the tests need that take long (make test-all)
#   deploy/deps.sh --install PACKAGE...  the second half, as root; "@cargo" stands for a new enough cargo
set -euo pipefail

readonly MIN_CARGO=1.85
readonly RUSTUP="see https://rustup.rs: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"

# A user's PATH on Debian has neither: nginx, ethtool and dnsmasq are in sbin, rustup's cargo in ~/.cargo/bin.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
case :$PATH: in *":${HOME:-/root}/.cargo/bin:"*) ;; *) PATH=${HOME:-/root}/.cargo/bin:$PATH ;; esac
CARGO=${CARGO:-cargo}

say() { printf 'deps: %s\n' "$*"; }
die() {
	printf 'deps: %s\n' "$@" >&2
	exit 1
}

# What must be there: a check, the package with apt, the package with dnf.
build_requirements() {
	cat <<'TABLE'
command:cc           gcc              gcc
command:make         make             make
command:pkg-config   pkg-config       pkgconf-pkg-config
header:stdio.h       libc6-dev        glibc-devel
header:gelf.h        libelf-dev       elfutils-libelf-devel
header:zlib.h        zlib1g-dev       zlib-devel
clang                clang            clang
certificates         ca-certificates  ca-certificates
cargo                @cargo           @cargo
TABLE
}
run_requirements() { # of the demo and the tests
	cat <<'TABLE'
command:ip           iproute2         iproute
command:tc           iproute2         iproute-tc
command:unshare      util-linux       util-linux
command:nsenter      util-linux       util-linux
command:setpriv      util-linux       util-linux
command:ps           procps           procps-ng
command:ethtool      ethtool          ethtool
command:curl         curl             curl
command:nginx        nginx            nginx
command:iperf3       iperf3           iperf3
command:wrk          wrk              wrk
command:dnsmasq      dnsmasq-base     dnsmasq
command:dig          bind9-dnsutils   bind-utils
command:faketime     faketime         libfaketime
command:nft          nftables         nftables
command:iptables     iptables         iptables-nft
command:promtool     prometheus       golang-github-prometheus
command:tmux         tmux             tmux
command:tshark       tshark           wireshark-cli
TABLE
}
long_requirements() { # of the tests that take long; "-": those go without it there, and say so
	cat <<'TABLE'
command:prometheus-alertmanager prometheus-alertmanager -
TABLE
}

requirements() { # run|build|all
	build_requirements
	[ "$1" = build ] || run_requirements
	[ "$1" != all ] || long_requirements
}

present() {
	case $1 in
	command:*) command -v "${1#*:}" >/dev/null ;;
	header:*) cc -E -x c - >/dev/null 2>&1 <<<"#include <${1#*:}>" ;;
	clang) command -v "${BPF_CLANG:-clang}" >/dev/null || compgen -c clang- | grep -E '^clang-[0-9]+$' >/dev/null ;;
	certificates) # cargo fetches crates over https
		[ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ] || [ -e /etc/ssl/cert.pem ]
		;;
	cargo) [ -n "$(cargo_version)" ] && at_least "$(cargo_version)" "$MIN_CARGO" ;;
	esac
}

cargo_version() {
	{ "$CARGO" --version 2>/dev/null || true; } | sed -n 's/^cargo \([0-9][0-9.]*\).*/\1/p'
}

at_least() { # VERSION MINIMUM
	[ "$(printf '%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# The checks that fail, each with its package in the names of package manager $1: "check package" per line.
missing() { # apt|dnf run|build|all
	local check apt dnf package
	while read -r check apt dnf; do
		[ "$1" = dnf ] && package=$dnf || package=$apt
		[ "$package" = - ] || present "$check" || printf '%s %s\n' "$check" "$package"
	done < <(requirements "$2")
}

refresh_index() {
	say 'apt-get update'
	apt-get update -q
	updated=yes
}

# Missing on a minimal image, and outdated packages are no longer on the servers.
index_is_fresh() {
	local lists=/var/lib/apt/lists
	[ -n "$(find "$lists" -maxdepth 1 -name '*Packages*' -print -quit)" ] &&
		[ -n "$(find "$lists" "$lists/partial" -maxdepth 0 -mtime -1 2>/dev/null)" ]
}

# The names of Debian's packages for a cargo that is new enough: Debian 12 has one beside its default, 1.65.
apt_cargo() {
	local name version
	for name in cargo cargo-web; do
		version=$(LC_ALL=C apt-cache policy "$name" | sed -n 's/^ *Candidate: //p')
		if [ -n "$version" ] && dpkg --compare-versions "$version" ge "$MIN_CARGO"; then
			case $name in
			cargo) echo cargo ;;
			cargo-web) echo cargo-web rustc-web ;;
			esac
			return
		fi
	done
}

# cargo-web conflicts with both; removing them is not ours to decide.
keep_installed_rust() {
	local installed
	for installed in cargo rustup; do
		if [ "$1" != "$installed" ] &&
			dpkg-query -W -f '${db:Status-Status}\n' "$installed" 2>/dev/null | grep -qx installed; then
			die "cargo $MIN_CARGO or newer is needed, and the installed package $installed stands in its way. Either" \
				"  apt-get install $*        (replaces $installed)" \
				"or install a newer toolchain with rustup, $RUSTUP"
		fi
	done
}

# The services that come with packages.
services_of() { # PACKAGE...
	local name
	for name in "$@"; do
		case $name in
		nginx) echo nginx ;;
		prometheus) echo prometheus ;;
		prometheus-alertmanager) echo prometheus-alertmanager ;;
		esac
	done
}

# Debian starts and enables a service when its package is installed: an nginx that the tests want as a
# program would become a web server on port 80 of the user's machine. policy-rc.d is Debian's way to forbid
# the start. It forbids only while this script runs, should it be left behind by a SIGKILL.
readonly POLICY=/usr/sbin/policy-rc.d
readonly POLICY_MARK='made by deploy/deps.sh of xdp-lb'
forbid_services() {
	if [ -e "$POLICY" ]; then
		grep -qsF "$POLICY_MARK" "$POLICY" || return 0
		rm -f "$POLICY"
	fi
	trap 'rm -f "$POLICY"' EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM
	printf '#!/bin/sh\n# %s\n[ -d /proc/%d ] && exit 101\nexit 0\n' "$POLICY_MARK" $$ >"$POLICY"
	chmod 755 "$POLICY"
}

apt_get_install() {
	apt-get install -q -y --no-install-recommends --no-remove -o DPkg::Lock::Timeout=120 "$@"
}

install_apt() {
	local packages=() name rust
	export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 # ask nothing, restart nobody's services
	updated=no
	index_is_fresh || refresh_index
	for name in "$@"; do
		if [ "$name" = @cargo ]; then
			read -ra rust <<<"$(apt_cargo)"
			[ ${#rust[@]} -gt 0 ] || die "no package here has cargo $MIN_CARGO or newer; install it with rustup, $RUSTUP"
			keep_installed_rust "${rust[@]}"
			packages+=("${rust[@]}")
		else
			packages+=("$name")
		fi
	done

	local services
	mapfile -t services < <(services_of "${packages[@]}")
	[ ${#services[@]} -eq 0 ] || forbid_services
	say "apt-get install ${packages[*]}"
	if ! apt_get_install "${packages[@]}"; then
		[ "$updated" = no ] || die "apt-get could not install: ${packages[*]}"
		refresh_index
		apt_get_install "${packages[@]}" || die "apt-get could not install: ${packages[*]}"
	fi
	# The start at the next boot is another matter, and not forbidden by policy-rc.d. --now is for the case
	# that a policy of the user's own allowed the start.
	if [ ${#services[@]} -gt 0 ] && command -v systemctl >/dev/null; then
		if [ -d /run/systemd/system ]; then
			systemctl --quiet disable --now "${services[@]}"
		else
			systemctl --quiet disable "${services[@]}"
		fi
		say "installed as programs only, their services neither running nor enabled: ${services[*]}"
	fi
}

install_dnf() {
	local packages=("${@/#@cargo/cargo}")
	say "dnf install ${packages[*]}"
	dnf install -y --setopt=install_weak_deps=False "${packages[@]}" || die "dnf could not install: ${packages[*]}"
}

package_manager() {
	if command -v apt-get >/dev/null; then
		echo apt
	elif command -v dnf >/dev/null; then
		echo dnf
	fi
}

install_as_root() {
	if [ "$(id -u)" = 0 ]; then
		bash "$0" --install "$@"
	elif command -v sudo >/dev/null; then
		say "missing: $*; installing as root with sudo"
		sudo -- bash "$0" --install "$@"
	else
		die "missing: $*" 'there is no sudo here; run as root:' "  $(realpath "$0") --install $*"
	fi
}

main() {
	local manager scope=run lacking packages
	manager=$(package_manager)
	case ${1:-} in
	--install)
		shift
		[ "$(id -u)" = 0 ] || die '--install is for root'
		[ $# -gt 0 ] || die '--install needs the names of packages'
		[ -n "$manager" ] || die 'neither apt-get nor dnf is here'
		"install_$manager" "$@"
		return
		;;
	build | all) scope=$1 ;;
	'') ;;
	*) die "unknown argument: $1 (there are 'build', 'all' and '--install PACKAGE...')" ;;
	esac

	lacking=$(missing "$manager" "$scope")
	[ -n "$lacking" ] || return 0
	mapfile -t packages < <(cut -d ' ' -f 2 <<<"$lacking" | sort -u)
	if ! present cargo; then
		if [ -n "$(cargo_version)" ]; then
			say "cargo $(cargo_version) is too old: $MIN_CARGO is needed"
		elif command -v "$CARGO" >/dev/null; then
			die "'$CARGO --version' fails (with rustup: rustup default stable):" "$("$CARGO" --version 2>&1 || true)"
		fi
	fi
	if [ -z "$manager" ]; then
		die 'neither apt-get nor dnf is here; please install what Debian calls' "  ${packages[*]/#@/}" \
			"cargo must be $MIN_CARGO or newer: $RUSTUP"
	fi
	install_as_root "${packages[@]}"

	hash -r
	lacking=$(missing "$manager" "$scope")
	if [ -n "$lacking" ]; then
		present cargo || say "cargo is '$(cargo_version)', $MIN_CARGO or newer is needed: $RUSTUP" >&2
		die 'still missing after the installation (check, package):' "$lacking"
	fi
	say 'everything is there'
}

main "$@"
