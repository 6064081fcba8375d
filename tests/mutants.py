#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Plants faults in the kernel program, one at a time, and has the tests find each of them.

usage: tests/mutants.py [--list] [--quick] [--write FILE] [NAME ...]

The tree is copied; yours is not touched. Of the suites the quick ones run first, and the first that fails ends the mutant's
turn; one that survives them meets the whole of `cargo test`. Ends with 1 if any survives, or cannot be planted or compiled:
change the list then, with the code. The tests need root: of sudo, if you are somebody else.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BPF = "src/bpf/"
QUICK = ["packets", "model", "conn_hammer", "rings"]
# In the last stage: a test that looks for lines of the source fails whatever was done to them.
LOOK_AT_SOURCES = ["the_check_can_fail"]
# A mutant that makes a test wait for ever is caught, too.
TIMEOUT = 1800

# name, file, what stands there (once), what the fault makes of it
MUTANTS = [
    ("fold-without-the-last-carry", "checksum.h",
     "\tsum = (sum & 0xffff) + (sum >> 16);\n\treturn sum;", "\treturn sum;"),
    ("fold-that-drops-carries", "checksum.h",
     "\tsum = (sum & 0xffffffff) + (sum >> 32);\n", "\tsum = sum & 0xffffffff;\n"),
    ("update-without-complement", "checksum.h",
     "return ~lb_csum_fold((__u16)~check + diff);", "return ~lb_csum_fold(check + diff);"),
    ("finished-zero-of-udp-stays", "checksum.h",
     "if (!check && proto == IPPROTO_UDP)\n\t\tcheck = 0xffff;", "(void)proto;"),
    ("updated-zero-of-udp-stays", "nat.h",
     "return !check && pkt->proto == IPPROTO_UDP ? 0xffff : check;", "return check;"),
    ("udp-without-checksum-gets-one", "nat.h",
     "if (pkt->proto == IPPROTO_UDP && !check)\n\t\treturn 0;\n\tif (direct", "if (direct"),
    ("port-left-out-of-the-checksum", "nat.h",
     "check = lb_csum_update(check, addr_diff + port_diff);", "check = lb_csum_update(check, addr_diff + 0 * port_diff);"),
    ("partial-by-mode-instead-of-verdict", "nat.h",
     "if (direct && !lb_profile.skb_mode) {", "if (direct + 1 && !lb_profile.skb_mode) {"),
    ("partial-gets-the-ports", "nat.h",
     "return lb_csum_fold(check + addr_diff);", "return lb_csum_fold(check + addr_diff + port_diff);"),
    ("every-match-is-partial", "partial.h",
     "if (partial && !LB_READ_ONCE(*sender))", "if (0)"),
    ("ttl-not-decremented", "nat.h", "before - bpf_htons(0x0100) : before;", "before : before;"),
    ("ttl-decremented-for-the-kernel-too", "nat.h",
     "\tif (direct)\n\t\t*ttl_and_protocol = after;\n", "\t*ttl_and_protocol = before - bpf_htons(0x0100);\n"),
    ("ttl-left-out-of-the-checksum", "nat.h", "addr_diff + lb_csum_diff16(before, after)", "addr_diff"),
    ("too-big-by-one", "nat.h", "pkt->ip_len > hop->mtu", "pkt->ip_len >= hop->mtu"),
    ("too-big-for-the-kernel-too", "nat.h", "if (!stack_reason && pkt->ip_len > hop->mtu)", "if (pkt->ip_len > hop->mtu)"),
    ("tcp-header-beyond-the-packet", "parse.h", "if (tcp->doff < 5 || tcp->doff * 4 > pkt->l4_len)", "if (tcp->doff < 5)"),
    ("tcp-header-too-short", "parse.h", "if (tcp->doff < 5 || tcp->doff * 4 > pkt->l4_len)", "if (tcp->doff * 4 > pkt->l4_len)"),
    ("tcp-header-beyond-the-frame", "parse.h", "if ((void *)(tcp + 1) > end)", "if (!end)"),
    ("udp-length-not-checked", "parse.h",
     "if (len < sizeof(*udp) || (len > pkt->l4_len && !pkt->first_fragment))", "if (len < sizeof(*udp))"),
    ("total-length-not-checked", "parse.h",
     "if (pkt->frame_len - pkt->l4_offset + header < pkt->ip_len)", "if (0)"),
    ("ip-options-forgotten", "parse.h", "\tpkt->l4 = (void *)ip + header;", "\tpkt->l4 = (void *)ip + sizeof(*ip);"),
    ("one-tag-only", "parse.h", "#define LB_MAX_VLAN_TAGS 2", "#define LB_MAX_VLAN_TAGS 1"),
    ("group-macs-balanced", "parse.h", "if (eth->h_dest[0] & 1)", "if (eth->h_dest[0] & 2 & 1)"),
    ("later-fragments-balanced", "parse.h", "if (fragment & LB_IP_OFFSET)", "if (0)"),
    ("first-fragments-balanced", "xdp_lb.bpf.c", "if (pkt->first_fragment && ", "if (0 && "),
    ("long-segments-summed-with-gaps", "checksum.h", "\tloop->offset += size;\n", "\tloop->offset += size + 2;\n"),
    ("second-line-never-searched", "service.h",
     "if (entry || !bucket->entry[LB_SERVICES_PER_BUCKET - 1].used)\n\t\treturn entry;",
     "if (entry || bucket)\n\t\treturn entry;"),
    ("second-origin-never-searched", "service.h", "if (!origin->proto)\n\t\treturn NULL;", "if (origin)\n\t\treturn NULL;"),
    ("state-before-the-claim", "conn.h",
     "\t\tif (!rank || !lb_conn_swap(conn, old, claimed))\n\t\t\tcontinue;\n\t\tlb_conn_gave_way(old, rank);\n"
     "\t\tLB_WRITE_ONCE(conn->key, ref->key);\n"
     "\t\t/* release: after the key; a swap, because a claim that was held up for seconds may have been taken over */\n"
     "\t\tif (lb_conn_swap(conn, claimed, state))\n\t\t\treturn LB_CONTINUE;\n",
     "\t\tif (!rank || !lb_conn_swap(conn, old, state))\n\t\t\tcontinue;\n\t\tlb_conn_gave_way(old, rank);\n"
     "\t\t(void)claimed;\n"
     "\t\tLB_WRITE_ONCE(conn->key, ref->key);\n\t\treturn LB_CONTINUE;\n"),
    ("swap-without-compare", "conn.h",
     "\tif (__sync_val_compare_and_swap(&conn->state, from, to) != from)\n\t\treturn 0;\n\tlb_load_follow",
     "\tLB_WRITE_ONCE(conn->state, to);\n\tlb_load_follow"),
    ("tag-not-compared", "conn.h", "if (lb_state_tag(now) != tag || !lb_state_is_entry(now))", "(void)tag;\n\tif (!lb_state_is_entry(now))"),
    ("claimed-slots-found", "conn.h",
     "<= LB_PHASE_CLOSED - LB_PHASE_UNCONFIRMED;\n}\n\n/* What loads", "<= LB_PHASE_CLAIMED - LB_PHASE_UNCONFIRMED;\n}\n\n/* What loads"),
    ("second-bucket-never-searched", "conn.h",
     "return conn ? conn : lb_conn_in(ref->second, ref->key, ref->tag, state);", "return conn;"),
    ("timeout-by-one", "conn.h", "| lb_below(timeout, age);", "| lb_below(timeout, age + 1);"),
    ("newer-clocks-are-old", "conn.h", "\tage = lb_if(lb_below(age, LB_AGE_LIMIT), age, 0);\n", ""),
    ("unconfirmed-take-whole-buckets", "conn.h",
     "lb_if(lb_below(rating->unconfirmed, LB_CONNS_PER_BUCKET / 2), rating->available, 0);",
     "lb_if(lb_below(rating->unconfirmed, LB_CONNS_PER_BUCKET), rating->available, 0);"),
    ("live-ones-are-victims", "conn.h", "#define LB_RANK_LIVE 0", "#define LB_RANK_LIVE 1"),
    ("confirmed-pile-up-in-a-flood", "conn.h", "(rating->spare + rating->unconfirmed) << 21);", "0);"),
    ("ended-ones-are-no-room", "conn.h", "rating->spare += lb_below(LB_RANK_UNCONFIRMED, rank);", "rating->spare += lb_equal(rank, LB_RANK_FREE);"),
    ("newest-unconfirmed-evicted", "conn.h", "\t\tother = lb_below(one, two);\n\t}\n", "\t\tother = lb_below(two, one);\n\t}\n"),
    ("hit-does-not-clear-expired", "conn.h",
     "\t__u64 fresh = lb_state_seen_at(state & ~LB_STATE_EXPIRED, now);\n\n\tif (proto == IPPROTO_UDP)",
     "\t__u64 fresh = lb_state_seen_at(state, now);\n\n\tif (proto == IPPROTO_UDP)"),
    ("rst-of-the-client-ends", "conn.h",
     "lb_state_in_phase(fresh, LB_PHASE_CLOSING) : state;", "lb_state_in_phase(fresh, LB_PHASE_CLOSED) : state;"),
    ("fin-of-both-does-not-end", "conn.h",
     "\t\t\tif (fresh & LB_STATE_CLIENT_CLOSED)\n\t\t\t\treturn lb_state_in_phase(fresh, LB_PHASE_CLOSED);\n", ""),
    ("client-prolongs-closing", "conn.h",
     "return lb_state_in_phase(state, LB_PHASE_REVIVING);", "return lb_state_in_phase(fresh, LB_PHASE_REVIVING);"),
    ("syn-ack-keeps-old-fins", "conn.h",
     "\t\t\tfresh &= ~(LB_STATE_CLIENT_CLOSED | LB_STATE_BACKEND_CLOSED);\n", "\t\t\t;\n"),
    ("any-packet-confirms", "conn.h",
     "(flags & (LB_TCP_SYN | LB_TCP_RST | LB_TCP_ACK)) != LB_TCP_ACK))", "(flags & (LB_TCP_SYN | LB_TCP_RST)))) "),
    ("broken-checksums-confirm", "forward.h", "LB_PHASE_ANSWERED && !lb_intact(ctx, pkt);", "LB_PHASE_ANSWERED && 0 && !lb_intact(ctx, pkt);"),
    ("ring-one-too-long", "select.h",
     "position = position + 1 == length ? 0 : position + 1;", "position = position == length ? 0 : position + 1;"),
    ("ring-hash-without-port", "select.h", "word |= (__u64)new->client_port << 32;", "word |= 0;"),
    ("one-retry-less", "select.h", "for (int i = 0; i <= LB_SELECT_RETRIES; i++) {", "for (int i = 0; i < LB_SELECT_RETRIES; i++) {"),
    ("tuples-in-use-taken", "select.h",
     "else if (backend->flags & LB_BACKEND_SHARED && lb_tuple_in_use(new, candidate))", "else if (!new)"),
    ("closed-tuples-stay", "select.h", "\t\tif (!lb_conn_swap(conn, state, 0))\n\t\t\treturn 1;\n", ""),
    ("draining-backends-take-more", "affinity.h", "LB_READ_ONCE(backend->state) == LB_BACKEND_UP &&", "LB_READ_ONCE(backend->state) <= LB_BACKEND_DRAIN &&"),
    ("udp-stays-on-dead-backends", "forward.h", "return now < LB_BACKEND_DOWN;", "return 1;"),
    ("udp-stays-on-disabled-backends", "forward.h", "return now < LB_BACKEND_DOWN;", "return now != LB_BACKEND_DOWN;"),
    ("dead-backends-keep-connections", "forward.h", "if (now == LB_BACKEND_RESET)", "if (now == LB_BACKEND_NONE)"),
    ("what-nobody-takes-is-always-dropped", "select.h",
     "&& service && LB_READ_ONCE(service->flags) & LB_SERVICE_PASS_EMPTY)", "&& !service)"),
    ("tuples-in-use-passed", "select.h", "if (reason == LB_DROP_NO_BACKEND && service &&", "if (service &&"),
    ("any-syn-awaits-an-answer", "answers.h",
     "if ((pkt->tcp_flags & (LB_TCP_FIN | LB_TCP_SYN | LB_TCP_RST | LB_TCP_ACK)) != LB_TCP_SYN)",
     "if (!(pkt->tcp_flags & LB_TCP_SYN))"),
    ("answers-of-confirmed-connections", "answers.h", "&& phase <= LB_PHASE_ANSWERED)", "&& phase <= LB_PHASE_ESTABLISHED)"),
    ("syn-acks-that-are-sent-again-ignored", "answers.h", "&& phase <= LB_PHASE_ANSWERED)", "&& phase < LB_PHASE_ANSWERED)"),
    ("any-rst-refuses", "answers.h", "else if (flags == (LB_TCP_RST | LB_TCP_ACK) &&", "else if (flags & LB_TCP_RST &&"),
    ("resets-of-answered-connections-refuse", "answers.h",
     "&& phase == LB_PHASE_UNCONFIRMED)", "&& phase <= LB_PHASE_ANSWERED)"),
    ("answers-leave-refusals", "answers.h", "\t\tLB_WRITE_ONCE(answers->refused, 0);\n", ""),
    ("removed-backends-go-on", "forward.h", "if (now == LB_BACKEND_NONE || backend->service != service)", "if (backend->service != service)"),
    ("rows-of-other-services-go-on", "forward.h", "if (now == LB_BACKEND_NONE || backend->service != service)", "if (now == LB_BACKEND_NONE || !service)"),
    ("loopback-may-be-a-client", "forward.h", "first != 127 && ", ""),
    ("syn-reopens-on-a-draining-backend", "forward.h",
     "return lb_state_phase(state) == LB_PHASE_ESTABLISHED;", "return lb_state_phase(state) != LB_PHASE_CLOSED;"),
    ("replies-from-anywhere", "reply.h", "return nexthop && nexthop->ifindex == ctx->ingress_ifindex;", "return nexthop && ctx;"),
    ("replies-of-any-backend", "reply.h", "if (conn && lb_state_backend(state) == pair.backend)", "if (conn)"),
    ("client-next-hop-never-renewed", "reply.h", "hop.index != known ? hop.index : 0", "known ? 0 : hop.index"),
    ("no-tx-ignored", "stats.h", "if (pkt->out_ifindex == ctx->ingress_ifindex && !pkt->no_tx)", "if (pkt->out_ifindex == ctx->ingress_ifindex)"),
    ("the-client-asked-for-not-its-gateway", "nexthop.h", "lb_hop_unresolved(fib.ipv4_dst, fib.ifindex);", "lb_hop_unresolved(daddr, fib.ifindex);"),
    ("header-checksum-not-asked-for", "partial.h", "if (!lb_csum_whole(ctx, pkt->l4_offset - header, header, 0))", "if (header > 60)"),
    ("partial-in-spite-of-the-udp-length", "partial.h", "if (pkt->proto == IPPROTO_UDP && bpf_ntohs(pkt->udp->len) != pkt->l4_len)", "if (0)"),
    ("retired-next-hops-used", "nexthop.h", "if (!(flags & LB_NEXTHOP_VALID))", "if (0)"),
    ("replies-counted-as-requests", "stats.h", "pkt->to_client ? &counters->to_client : &counters->to_backend", "&counters->to_backend"),
    ("ended-connections-stay-in-the-load", "conn.h", "__sync_fetch_and_add(&load->ended, 1);", "(void)load;"),
    ("least-of-equals-by-number", "least.h", "if (least.ties > 1)", "if (least.ties > 100)"),
    ("least-without-weights", "least.h", "mine = live * least->weight;", "mine = live * backend->weight;"),
    ("clients-forgotten-a-tick-early", "affinity.h", "return age <= (__s32)sticky;", "return age < (__s32)sticky;"),
    ("unconfirmed-make-records", "conn.h",
     "return lb_state_phase(from) == LB_PHASE_ANSWERED && phase > LB_PHASE_ANSWERED &&",
     "return from && phase >= LB_PHASE_ANSWERED &&"),
    ("events-of-swaps-that-failed", "conn.h",
     "\t\tseen = __sync_val_compare_and_swap(&conn->state, state, want);\n\t\tif (seen == state) {\n"
     "\t\t\tlb_packet_did(pkt, lb_conn_events(state, want, pkt->tcp_flags));\n",
     "\t\tpkt->events = lb_conn_events(state, want, pkt->tcp_flags);\n"
     "\t\tseen = __sync_val_compare_and_swap(&conn->state, state, want);\n\t\tif (seen == state) {\n"),
    ("evictions-of-claims-that-failed", "conn.h",
     "if (!rank || !lb_conn_swap(conn, old, claimed))\n\t\t\tcontinue;\n\t\tlb_conn_gave_way(old, rank);\n",
     "if (!rank)\n\t\t\tcontinue;\n\t\tlb_conn_gave_way(old, rank);\n\t\tif (!lb_conn_swap(conn, old, claimed))\n\t\t\tcontinue;\n"),
    ("evictions-not-counted", "conn.h", "\t\tlb_conn_gave_way(old, rank);\n\t\tLB_WRITE_ONCE", "\t\tLB_WRITE_ONCE"),
    ("the-dead-are-evicted", "conn.h",
     "\tif (lb_state_is_live(old))\n\t\tlb_event_evicted", "\tif (lb_state_is_entry(old))\n\t\tlb_event_evicted"),
    ("the-late-are-evicted", "conn.h", "rank == LB_RANK_EXPIRED);\n}", "rank == LB_RANK_FREE);\n}"),
    ("revivals-not-counted", "conn.h", "from & ~to & LB_STATE_EXPIRED ? LB_EVENT_REVIVED : 0", "0"),
    ("revived-though-they-stay-expired", "conn.h", "from & ~to & LB_STATE_EXPIRED ? LB", "from & LB_STATE_EXPIRED ? LB"),
    ("closed-once-more", "conn.h",
     "if (lb_state_phase(from) != LB_PHASE_CLOSED && lb_state_phase(to) == LB_PHASE_CLOSED)", "if (lb_state_phase(to) == LB_PHASE_CLOSED)"),
    ("resets-are-closes", "conn.h", "tcp_flags & LB_TCP_RST ? LB_EVENT_RESET", "tcp_flags & LB_TCP_SYN ? LB_EVENT_RESET"),
    ("moves-not-counted", "select.h", "\t\tif (lb_state_is_live(old))\n\t\t\tlb_event_moved", "\t\tif (0)\n\t\t\tlb_event_moved"),
    ("the-dead-move", "select.h", "\t\tif (lb_state_is_live(old))\n\t\t\tlb_event_moved", "\t\tif (old)\n\t\t\tlb_event_moved"),
    ("moves-of-the-new-backend", "select.h", "lb_event_moved(lb_state_backend(old));", "lb_event_moved(backend);"),
    ("tuples-that-give-way-not-counted", "select.h", "\t\tif (lb_state_is_live(state))\n\t\t\tlb_event_expired(pair.backend);\n", ""),
    ("the-dead-give-way", "select.h", "\t\tif (lb_state_is_live(state))\n\t\t\tlb_event_expired", "\t\tif (state)\n\t\t\tlb_event_expired"),
    ("replaced-ones-are-not-opened", "select.h",
     "\t\tnew->made = 1;\n\t\treturn backend;\n\t}\n\t/* Another", "\t\treturn backend;\n\t}\n\t/* Another"),
    ("opened-by-syns-only", "forward.h",
     "\t\tlb_packet_did(pkt, LB_EVENT_OPENED);\n", "\t\tif (pkt->tcp_flags & LB_TCP_SYN)\n\t\t\tlb_packet_did(pkt, LB_EVENT_OPENED);\n"),
    ("syns-of-confirmed-ones-are-sent-again", "forward.h",
     "return lb_below(lb_state_phase(state), LB_PHASE_ESTABLISHED) *", "return lb_below(lb_state_phase(state), LB_PHASE_CLOSING) *"),
    ("syn-acks-of-the-client-are-sent-again", "forward.h",
     "\tif ((pkt->tcp_flags & (LB_TCP_SYN | LB_TCP_ACK | LB_TCP_RST)) != LB_TCP_SYN)\n\t\treturn 0;\n\treturn lb_below",
     "\tif (!(pkt->tcp_flags & LB_TCP_SYN))\n\t\treturn 0;\n\treturn lb_below"),
    ("syns-sent-again-begin-anew", "forward.h",
     "\t\tlb_packet_did(pkt, lb_syn_again(pkt, state));\n",
     "\t\tlb_packet_did(pkt, lb_syn_again(pkt, state));\n\t\tif (lb_syn_again(pkt, state))\n\t\t\tlb_handshake_begins(hash, index, pkt->now);\n"),
    ("rsts-of-closed-ones-not-counted", "reply.h",
     "\tif (pkt->tcp_flags & LB_TCP_RST)\n", "\tif (pkt->tcp_flags & LB_TCP_RST && lb_state_phase(state) != LB_PHASE_CLOSED)\n"),
    ("events-of-dropped-packets-lost", "stats.h",
     "\t\tif (pkt->events)\n", "\t\tif (pkt->events && reason >> LB_REASON_BITS <= LB_CLASS_STACK)\n"),
    ("events-lost-between-cpus", "events.h", "\t__sync_fetch_and_add(counter, 1);\n", "\tLB_WRITE_ONCE(*counter, LB_READ_ONCE(*counter) + 1);\n"),
    ("revived-counts-as-reset", "events.h", "lb_event_add(&row->revived);", "lb_event_add(&row->reset);"),
    ("handshakes-answered-twice", "events.h", "\tLB_WRITE_ONCE(row->word, 0);\n", ""),
    ("handshakes-of-others", "events.h", "if (word >> 32 != lb_handshake_tag(hash))", "if (!word)"),
    ("handshakes-of-half-a-tag", "events.h", "return (hash >> 16) | 1;", "return ((hash >> 16) & 0xffff) | 1;"),
    ("handshakes-without-a-limit", "events.h", "if (micros > LB_HANDSHAKE_LIMIT)", "if (micros > 2 * LB_HANDSHAKE_LIMIT)"),
    ("the-limit-is-too-long", "events.h", "if (micros > LB_HANDSHAKE_LIMIT)", "if (micros >= LB_HANDSHAKE_LIMIT)"),
    ("bounds-belong-to-the-next-bucket", "events.h",
     "bucket += micros > (__u32)LB_HISTOGRAM_FIRST << i;", "bucket += micros >= (__u32)LB_HISTOGRAM_FIRST << i;"),
    ("last-bucket-never-used", "events.h", "i < LB_HISTOGRAM_BUCKETS - 1; i++", "i < LB_HISTOGRAM_BUCKETS - 2; i++"),
    ("handshakes-not-summed", "events.h",
     "\t__sync_fetch_and_add(&events->handshake.microseconds, micros);\n", "\t__sync_fetch_and_add(&events->handshake.microseconds, bucket);\n"),
    ("every-handshake-timed", "events.h", "if ((__u32)counters->timed >= LB_HANDSHAKES_PER_UNIT)", "if (now > 65535)"),
    ("one-handshake-more-timed", "events.h",
     "(__u32)counters->timed >= LB_HANDSHAKES_PER_UNIT", "(__u32)counters->timed > LB_HANDSHAKES_PER_UNIT"),
    ("handshakes-timed-once-for-all", "events.h", "if (counters->timed >> 32 != now)", "if (!counters->timed)"),
]


def copy_tree(to):
    """What is in version control or will be: nothing that was built."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            check=True, capture_output=True).stdout
    for name in listed.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def cargo(tree, target, *arguments):
    if os.geteuid() != 0:
        arguments = as_root(arguments)
    command = [os.environ.get("CARGO", "cargo"), "test", "--locked", *arguments]
    environment = dict(os.environ, CARGO_TARGET_DIR=str(target), CARGO_TERM_COLOR="never")
    return subprocess.run(command, cwd=tree, env=environment, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=TIMEOUT, errors="replace")


def as_root(arguments):
    """Cargo itself stays the user; only the tests run as root."""
    runner = f"['sudo', '-E', 'env', 'PATH={os.environ['PATH']}']"
    included = [] if "--no-run" in arguments else ["--include-ignored"]
    separator = ["--"] if included and "--" not in arguments else []
    return ["--config", f"target.'cfg(all())'.runner = {runner}", *arguments, *separator, *included]


def named(suites):
    return [word for suite in suites for word in ("--test", suite)]


def catch(tree, target, quick):
    """Returns (suite, test) of what catches the fault that is planted, None if nothing does; raises if it does not compile."""
    if (built := cargo(tree, target, "--no-run", *named([*QUICK, "verifier"]))).returncode:
        raise ValueError("it does not compile:\n" + "\n".join(built.stdout.splitlines()[-20:]))
    # What the kernel refuses says nothing about the tests.
    if cargo(tree, target, "--test", "verifier", "root_every_profile_is_verified").returncode:
        return "verifier", "the kernel refuses it"
    for suite in [*QUICK, *([] if quick else [None])]:
        try:
            rest = [] if suite else ["--", *[word for test in LOOK_AT_SOURCES for word in ("--skip", test)]]
            run = cargo(tree, target, *named([suite] if suite else []), *rest)
        except subprocess.TimeoutExpired:
            return suite or "all", "(it never ended)"
        if run.returncode:
            failed = re.findall(r"^test (\S+) \.\.\. FAILED$", run.stdout, re.MULTILINE)
            suite = suite or re.findall(r"Running tests/(\w+)", run.stdout)[-1:] or "all"
            return suite if isinstance(suite, str) else suite[0], ", ".join(failed[:2]) + (", ..." if failed[2:] else "")
    return None


def run_one(tree, target, mutant, quick):
    name, file, old, new = mutant
    path = tree / BPF / file
    text = path.read_text()
    if text.count(old) != 1:
        return None, f"cannot be planted: {file} has its place {text.count(old)} times"
    path.write_text(text.replace(old, new))
    try:
        caught = catch(tree, target, quick)
    except ValueError as error:
        return None, str(error)
    finally:
        path.write_text(text)
    return caught, "" if caught else "SURVIVED"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--quick", action="store_true", help="without the whole of cargo test for what survives the rest")
    parser.add_argument("--write", metavar="FILE", help="write the result as Markdown")
    parser.add_argument("names", nargs="*", metavar="NAME")
    arguments = parser.parse_args()
    if os.geteuid() != 0 and not arguments.list and subprocess.run(["sudo", "-v"]).returncode:
        parser.error("the tests that find the faults need root, and sudo gives none")
    unknown = set(arguments.names) - {mutant[0] for mutant in MUTANTS}
    if unknown:
        parser.error(f"there is no mutant {', '.join(sorted(unknown))}: --list names them")
    chosen = [mutant for mutant in MUTANTS if not arguments.names or mutant[0] in arguments.names]
    if arguments.list:
        print("\n".join(f"{file}\t{name}" for name, file, _, _ in chosen))
        return 0
    bad, rows = 0, []
    with tempfile.TemporaryDirectory(prefix="xdp-lb-mutants-") as directory:
        tree = pathlib.Path(directory) / "tree"
        copy_tree(tree)
        target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "mutants"
        clean = cargo(tree, target, *named(QUICK))
        if clean.returncode:
            print(clean.stdout[-3000:], "\nthe tests fail without any fault planted", sep="", file=sys.stderr)
            return 1
        for mutant in chosen:
            begin = time.monotonic()
            caught, trouble = run_one(tree, target, mutant, arguments.quick)
            bad += bool(trouble)
            rows.append((mutant[0], mutant[1], *(caught or (trouble, ""))))
            print(f"{rows[-1]}  {time.monotonic() - begin:.0f} s", flush=True)
    print(f"{len(rows) - bad} of {len(rows)} faults were caught")
    if arguments.write:
        lines = [f"| {name} | {file} | {suite} | {test} |\n" for name, file, suite, test in rows]
        text = pathlib.Path(arguments.write).read_text().split("| fault |")[0]
        pathlib.Path(arguments.write).write_text(
            text + "| fault | in | caught by | first tests that fail |\n| --- | --- | --- | --- |\n" + "".join(lines))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
