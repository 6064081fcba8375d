#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# The main job of xdp-lb on real traffic, in network namespaces of this machine: a client, the load balancer,
# and three web servers on a switch.
#
#   sudo deploy/demo.sh [XDP-LB]          XDP-LB: the program, default target/release/xdp-lb
#
# It runs in a mount and a network namespace of its own, with its own /run and /sys/fs/bpf, and every process
# it starts dies with it: whatever happens, even a SIGKILL, nothing is left on the machine.
set -euo pipefail

readonly VIP=192.168.1.100
readonly REQUESTS=100
readonly BIG_MIB=64
readonly BIG_TIMES=8
readonly SERVERS=3
readonly SHARE=([1]=50 [2]=30 [3]=20) # of 100 requests, by web server
readonly ADDRESS=([1]=10.0.0.10 [2]=10.0.0.11 [3]=10.0.0.12)
readonly PIN_DIR=/sys/fs/bpf/xdp_lb   # the program's default
readonly DIR=/run/xdp-lb-demo         # in the /run of our own

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
pids=()    # every process started in the background
xdp_lb_pid= # the one of them that is the load balancer
web_pid=()  # those of them that are web servers, by their numbers

heading() { printf '\n== %s\n\n' "$*"; }
indent() { sed 's/^/    /'; }
fail() {
	printf '\ndemo: %s\n' "$*" >&2
	exit 1
}

# Network namespaces are entered by nsenter: `ip netns exec` would hide /sys/fs/bpf behind a new /sys.
inside() { # NAMESPACE COMMAND...
	local namespace=$1
	shift
	nsenter --net="/run/netns/$namespace" -- "$@"
}

# In the background, its output to a file, and with a SIGKILL for it when this script dies. Sets $started.
# (bash lets what it starts in the background ignore SIGINT; env gives it back.)
start() { # NAMESPACE LOG COMMAND...
	local namespace=$1 log=$2
	shift 2
	setpriv --pdeathsig KILL -- env --default-signal=INT nsenter --net="/run/netns/$namespace" -- "$@" \
		</dev/null >"$log" 2>&1 &
	started=$!
	pids+=("$started")
}

running() { # PID; a zombie is not running
	local state
	state=$(sed -n 's/^State:[[:space:]]*//p' "/proc/$1/status" 2>/dev/null) && [[ -n $state && $state != Z* ]]
}

stop() { # SIGNAL PID: and wait for it, 5 s at most; its exit code
	local tries
	kill -s "$1" "$2" 2>/dev/null || true
	for ((tries = 0; tries < 50; tries++)); do
		running "$2" || break
		sleep 0.1
	done
	kill -s KILL "$2" 2>/dev/null || true
	wait "$2"
}

# Only what needs an orderly end: the namespaces take the rest away when the last process is gone.
clean_up() {
	local status=$? pid
	trap - EXIT
	trap '' INT TERM HUP
	for pid in "${pids[@]}"; do
		running "$pid" && { stop TERM "$pid" || true; }
	done 2>/dev/null
	exit "$status"
}

# ---------------------------------------------------------------------------------------------------------
# In the namespaces of the machine: check what is needed, then go on in namespaces of our own.

enter_own_namespaces() {
	local program=${1:-} tool
	[ $# -le 1 ] || fail "usage: $0 [XDP-LB]"
	[ "$(id -u)" = 0 ] || fail "this needs root: sudo $0 ${program:-}"
	for tool in ip nsenter unshare setpriv nginx curl; do
		command -v "$tool" >/dev/null || fail "$tool is missing; 'make demo' installs what is needed"
	done
	[ -n "$program" ] || program=$(dirname "$0")/../target/release/xdp-lb
	[ -x "$program" ] || fail "$program is not there; 'make demo' builds it"
	program=$(realpath "$program")
	unshare --mount --net --propagation unchanged true || fail "namespaces cannot be made here (in a container? it must be privileged)"
	exec env XDP_LB_DEMO=$$ unshare --mount --net --propagation unchanged bash "$(realpath "$0")" "$program"
}

prepare_own_namespaces() {
	# In a plain chroot / is no mount point, which ip(8) cannot do without: a bind mount of it is one.
	if ! mount --make-rprivate / 2>/dev/null; then
		mount --rbind / /mnt
		mount --make-rprivate /mnt
		exec env XDP_LB_DEMO=$$ chroot /mnt bash "$(realpath "$0")" "$@"
	fi
	mount -t tmpfs -o mode=0755 tmpfs /run
	mkdir /run/netns "$DIR"
	mount -t bpf -o mode=0700 bpf /sys/fs/bpf || fail "/sys/fs/bpf cannot be mounted: this kernel has no BPF file system"
}

# ---------------------------------------------------------------------------------------------------------
# The network.

drawing() {
	cat <<EOT
      client                 lb                        switch

                                                      .--------- web1  10.0.0.10:8080  weight 50
    192.168.1.2 ----- eth0  xdp-lb  eth1 -------------+--------- web2  10.0.0.11:8080  weight 30
                192.168.1.1         10.0.0.1          '--------- web3  10.0.0.12:8080  weight 20
         $VIP (VIP)
EOT
}

make_network() {
	local namespace n
	for namespace in client lb switch web{1..3}; do
		ip netns add "$namespace"
		ip -n "$namespace" link set lo up
	done

	ip link add eth0 netns client type veth peer name eth0 netns lb
	ip -n client address add 192.168.1.2/24 dev eth0
	ip -n lb address add 192.168.1.1/24 dev eth0
	ip -n client link set eth0 up
	ip -n lb link set eth0 up
	ip -n client route add default via 192.168.1.1

	# forward_delay: else a new port of the bridge is mute for 15 s.
	ip -n switch link add bridge type bridge forward_delay 0
	ip -n switch link set bridge up
	ip link add eth1 netns lb type veth peer name lb netns switch
	ip -n lb address add 10.0.0.1/24 dev eth1
	ip -n lb link set eth1 up
	ip -n switch link set lb master bridge up
	for ((n = 1; n <= SERVERS; n++)); do
		ip link add eth0 netns "web$n" type veth peer name "web$n" netns switch
		ip -n "web$n" address add "10.0.0.$((n + 9))/24" dev eth0
		ip -n "web$n" link set eth0 up
		ip -n "web$n" route add default via 10.0.0.1
		ip -n switch link set "web$n" master bridge up
	done

	# The load balancer's host is a router; without this its kernel says of no route that it may be used.
	# shellcheck disable=SC2016
	inside lb sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
}

# A veth delivers what native XDP sends only if its far end has an XDP program too.
prepare_veth_peers() { # XDP-LB
	local end
	for end in client:eth0 switch:lb; do
		inside "${end%:*}" "$1" veth-peer "${end#*:}" >"$DIR/veth-peer.log" 2>&1 || {
			indent <"$DIR/veth-peer.log" >&2
			fail "'xdp-lb veth-peer ${end#*:}' failed in namespace ${end%:*}"
		}
		has_xdp "${end%:*}" "${end#*:}" || fail "'xdp-lb veth-peer ${end#*:}' left no program on it"
	done
}

has_xdp() { # NAMESPACE INTERFACE
	ip -n "$1" -details link show dev "$2" | grep 'prog/xdp' >/dev/null # not -q: ip would die of SIGPIPE
}

has_address() { # NAMESPACE INTERFACE ADDRESS
	ip -n "$1" address show dev "$2" | grep -F "inet $3/" >/dev/null
}

# One process each, no daemon, and every path in our own directory.
start_web_server() { # NAME
	mkdir -p "$DIR/$1"
	truncate -s "${BIG_MIB}M" "$DIR/$1/big"
	cat >"$DIR/$1.conf" <<EOT
daemon off;
master_process off;
pid $DIR/$1.pid;
error_log $DIR/$1.log;
events {}
http {
	access_log off;
	sendfile on;
	client_body_temp_path $DIR/$1.body;
	proxy_temp_path $DIR/$1.proxy;
	fastcgi_temp_path $DIR/$1.fastcgi;
	uwsgi_temp_path $DIR/$1.uwsgi;
	scgi_temp_path $DIR/$1.scgi;
	server {
		listen 8080;
		root $DIR/$1;
		location = / { return 200 "$1\n"; }
	}
}
EOT
	start "$1" "$DIR/$1.out" nginx -e "$DIR/$1.log" -c "$DIR/$1.conf"
	web_pid[${1#web}]=$started
}

# Asked directly, past the load balancer, which is not there yet; this also makes the hosts know each other.
wait_for_web_server() { # NAME ADDRESS
	local tries answer
	for ((tries = 0; tries < 50; tries++)); do
		answer=$(inside lb curl -s --max-time 1 "http://$2:8080/" || true)
		[ "$answer" != "$1" ] || return 0
		sleep 0.1
	done
	cat "$DIR/$1.log" "$DIR/$1.out" 2>/dev/null | indent >&2
	fail "nginx in namespace $1 does not answer at $2:8080"
}

# ---------------------------------------------------------------------------------------------------------
# The load balancer and its traffic.

start_load_balancer() { # XDP-LB
	local deadline arguments=(
		eth0 --vip "$VIP:80"
		--backend 10.0.0.10:8080:50 --backend 10.0.0.11:8080:30 --backend 10.0.0.12:8080:20
		--assign-vip --stats-interval 2s
	)
	printf '%s\n' "\$ xdp-lb ${arguments[*]:0:3} \\" "      ${arguments[*]:3:6} \\" "      ${arguments[*]:9}" | indent
	echo
	start lb "$DIR/xdp-lb.log" "$1" "${arguments[@]}"
	xdp_lb_pid=$started

	# These requests count in its rotation, but any 100 connections in a row are spread 50/30/20.
	deadline=$((SECONDS + 10))
	until [ -n "$(request)" ]; do
		if ! running "$xdp_lb_pid" || ((SECONDS >= deadline)); then
			indent <"$DIR/xdp-lb.log" >&2
			running "$xdp_lb_pid" || fail 'xdp-lb ended by itself'
			fail "no answer from http://$VIP/ within 10 s"
		fi
		sleep 0.1
	done
	indent <"$DIR/xdp-lb.log"
}

request() { # the name of the server that answers; empty if none does
	inside client curl -s --max-time 2 "http://$VIP/" || true
}

send_requests() {
	local n name sequence='' wrong=0
	local -A answers=()
	for ((n = 1; n <= REQUESTS; n++)); do
		name=$(request)
		name=${name:-none}
		answers[$name]=$((${answers[$name]:-0} + 1))
		((n > 20)) || sequence+=" $name"
	done

	for ((n = 1; n <= SERVERS; n++)); do
		printf '    web%d   %3d   expected %d\n' "$n" "${answers[web$n]:-0}" "${SHARE[n]}"
		((${answers[web$n]:-0} == SHARE[n])) || wrong=1
	done
	printf '\n    the first 20:%s\n' "${sequence//web/}"
	[ -z "${answers[none]:-}" ] || fail "${answers[none]} of $REQUESTS requests failed"
	((wrong == 0)) || fail 'the requests are not spread by the weights'
}

bulk_transfer() {
	local began took file="http://$VIP/big?[1-$BIG_TIMES]" bytes=$((BIG_MIB * 1024 * 1024)) good
	began=${EPOCHREALTIME/[.,]/}
	inside client curl -s --max-time 60 -o /dev/null -w '%{http_code} %{size_download}\n' "$file" >"$DIR/bulk" ||
		fail "the bulk transfer failed: curl's exit code $?"
	took=$((${EPOCHREALTIME/[.,]/} - began))
	good=$(grep -cx "200 $bytes" "$DIR/bulk" || true)
	[ "$good" = "$BIG_TIMES" ] || fail "$good of $BIG_TIMES transfers of $BIG_MIB MiB were complete"
	awk -v bytes=$((bytes * BIG_TIMES)) -v us="$took" -v mib="$BIG_MIB" -v times="$BIG_TIMES" 'BEGIN {
		printf "    %d x %d MiB over one connection in %.2f s: %.2f Gbit/s\n", times, mib, us / 1e6, bytes * 8 / us / 1000
	}'
}

# Nobody tells the load balancer: it sees the refused connections, checks the server at once, and avoids it.
kill_a_server() {
	local n good=0 failed=0 began took
	stop KILL "${web_pid[2]}" 2>/dev/null || true
	began=${EPOCHREALTIME/[.,]/}
	while ((good < 20)); do # in a row
		if [ -n "$(request)" ]; then
			good=$((good + 1))
		else
			good=0
			failed=$((failed + 1))
			took=$((${EPOCHREALTIME/[.,]/} - began))
			((took < 20000000)) || fail 'requests still fail 20 s after a server was killed'
		fi
	done
	printf '    web2 is killed; %d requests fail, the last one %d ms later; the next %d are all answered\n\n' \
		"$failed" "$((${took:-0} / 1000))" "$good"
	grep ' is down after ' "$DIR/xdp-lb.log" | indent || true
	start_web_server web2
	for ((n = 0; n < 200; n++)); do
		! grep ' is up after ' "$DIR/xdp-lb.log" >"$DIR/up" || break
		sleep 0.1
	done
	indent <"$DIR/up"
	[ -s "$DIR/up" ] || fail 'web2 was started again and is still taken for dead after 20 s'
}

# A download goes on while its server drains, and new connections go elsewhere.
drain_a_server() { # XDP-LB
	local backend='' n name download
	start client "$DIR/download" curl -s --max-time 60 --limit-rate 24M -o /dev/null -w '%{http_code} %{size_download}\n' \
		"http://$VIP/big"
	download=$started
	for ((n = 0; n < 50; n++)); do
		backend=$(inside lb "$1" connections --state established | awk 'NR == 2 { print $3 }')
		[ -z "$backend" ] || break
		sleep 0.1
	done
	[ -n "$backend" ] || fail 'the download is not in the list of connections'
	inside lb "$1" connections --state established | indent
	printf '\n    $ xdp-lb backend drain %s %s --wait\n' "$VIP:80" "$backend"
	start lb "$DIR/drain" timeout 30 "$1" backend drain "$VIP:80" "$backend" --wait
	for ((n = 0; n < 50; n++)); do
		! grep -q drain "$DIR/drain" || break
		sleep 0.1
	done
	for ((n = 0; n < 10; n++)); do
		name=$(request)
		[ -n "$name" ] || fail 'a request failed while a server was drained'
		[ "${ADDRESS[${name#web}]}:8080" != "$backend" ] || fail "$name drains, and got a new connection"
	done
	wait "$started" || {
		indent <"$DIR/drain" >&2
		fail "'xdp-lb backend drain --wait' failed"
	}
	wait "$download" || fail "the download failed: curl's exit code $?"
	grep -qx "200 $((BIG_MIB * 1024 * 1024))" "$DIR/download" || fail 'the download is not complete'
	indent <"$DIR/drain"
	printf '\n    10 new requests went to the others meanwhile; the download is complete\n'
}

stop_load_balancer() {
	local status=0 left=0 interface
	stop INT "$xdp_lb_pid" || status=$?
	left_behind() { # WHAT COMMAND...: which succeeds if it is still there
		local what=$1 result=gone
		shift
		if "$@"; then
			result='LEFT BEHIND'
			left=1
		fi
		printf '    %-34s %s\n' "$what" "$result"
	}
	printf '    %-34s %d\n' 'exit code' "$status"
	for interface in eth0 eth1; do
		left_behind "XDP program on $interface" has_xdp lb "$interface"
	done
	left_behind "pins in $PIN_DIR" test -e "$PIN_DIR"
	left_behind "address $VIP on eth0" has_address lb eth0 "$VIP"
	if ((status != 0)); then
		tail -n 20 "$DIR/xdp-lb.log" | indent >&2
		fail "xdp-lb ended with exit code $status"
	fi
	((left == 0)) || fail 'xdp-lb left something behind'
}

main() {
	local program=$1 n

	heading 'The network: six namespaces of this machine'
	drawing
	make_network
	for ((n = 1; n <= SERVERS; n++)); do
		start_web_server "web$n"
	done
	for ((n = 1; n <= SERVERS; n++)); do
		wait_for_web_server "web$n" "10.0.0.$((n + 9))"
	done
	prepare_veth_peers "$program"

	heading 'The load balancer starts'
	start_load_balancer "$program"

	heading "$REQUESTS HTTP requests, each a connection of its own"
	send_requests

	heading 'A bulk transfer'
	bulk_transfer

	heading 'Statistics: xdp-lb status'
	inside lb "$program" status >"$DIR/status" 2>&1 || {
		indent <"$DIR/status" >&2
		fail "'xdp-lb status' failed"
	}
	indent <"$DIR/status"

	heading 'A server dies, and comes back'
	kill_a_server

	heading 'A server is taken out without losing a connection'
	drain_a_server "$program"

	heading 'The load balancer is stopped by SIGINT'
	if ! running "$xdp_lb_pid"; then
		indent <"$DIR/xdp-lb.log" >&2
		fail 'xdp-lb ended by itself'
	fi
	stop_load_balancer
	printf '\nThe demo is over: everything went as it should.\n'
}

# The variable holds the process that prepared our namespaces: unshare and bash have replaced it, not forked.
if [ "${XDP_LB_DEMO:-}" != $$ ]; then
	enter_own_namespaces "$@"
fi
unset XDP_LB_DEMO
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
prepare_own_namespaces "$@"
main "$@"
