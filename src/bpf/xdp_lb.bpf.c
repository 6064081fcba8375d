// SPDX-License-Identifier: GPL-2.0-only
/* xdp-lb: balances TCP and UDP connections to virtual addresses over backends, replies included.
 *
 *	parse -> service? -- yes --> connection? -- hit ----------------------> next hop -> translate -> TX / redirect
 *	           |                     '-- miss -> admit -> select -> insert ----^
 *	           no -> from a backend of a service? -> connection? -> next hop -> translate back -> TX / redirect
 *	           no -> XDP_PASS, byte for byte untouched
 *
 * Each step returns a reason (lb_counters.h), LB_CONTINUE while the packet is still on its way; the one exit counts it.
 */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "lb_types.h"
#include "lb_hash.h"
#include "maps.h"
#include "checksum.h"
#include "parse.h"
#include "service.h"
#include "conn.h"
#include "nexthop.h"
#include "partial.h"
#include "nat.h"
#include "select.h"
#include "stats.h"

char LICENSE[] SEC("license") = "GPL";

/* Not "this" network, loopback, multicast, reserved or broadcast (RFC 6890). */
static __always_inline int lb_may_be_client(__be32 addr)
{
	__u8 first = bpf_ntohl(addr) >> 24;

	return first != 0 && first != 127 && first < 224;
}

/* A packet that belongs to no usable connection (`old` is the state of one that is not usable, or 0): may it open one?
 * Returns minus the reason of a drop, or the backend.
 */
static __always_inline int lb_admit(struct xdp_md *ctx, struct lb_packet *pkt, __u16 service, __u64 key, __u64 old)
{
	struct lb_new new = {
		.key = key,
		.old = old,
		.client = pkt->ip->saddr,
		.vip = pkt->ip->daddr,
		.client_port = pkt->sport,
		.service = service,
		.now = pkt->now,
		.proto = pkt->proto,
	};
	int backend;

	if (pkt->tcp_flags & LB_TCP_RST)
		return -LB_DROP_RST_UNKNOWN;
	if (!lb_may_be_client(new.client) || new.client == new.vip)
		return -LB_DROP_BAD_SOURCE;
	backend = lb_connect(ctx, &new);
	pkt->new_connection = new.made;
	return backend;
}

/* Whether a packet goes on with the connection that it hits. */
static __always_inline int lb_goes_on(const struct lb_packet *pkt, __u64 state, const struct lb_backend *backend,
				      __u16 service)
{
	__u8 now = LB_READ_ONCE(backend->state);

	if (now == LB_BACKEND_NONE || backend->service != service)
		return 0;
	if (pkt->proto == IPPROTO_UDP)
		return now != LB_BACKEND_DOWN;
	if ((pkt->tcp_flags & (LB_TCP_SYN | LB_TCP_ACK | LB_TCP_RST)) != LB_TCP_SYN)
		return 1;
	/* Anybody can send a SYN in a client's name: it does not take a live connection off a backend that drains. */
	if (now == LB_BACKEND_DRAIN)
		return lb_state_phase(state) == LB_PHASE_ESTABLISHED;
	return now == LB_BACKEND_UP && lb_state_phase(state) != LB_PHASE_CLOSED;
}

/* The ACK that confirms a connection must be one that the backend answers, with a RST if its number is wrong: what the
 * backend discards unseen, by a wrong checksum, would let spoofed connections live as long as real ones.
 */
static __always_inline int lb_confirms_blindly(struct xdp_md *ctx, struct lb_packet *pkt, __u64 state)
{
	return pkt->proto == IPPROTO_TCP && lb_state_phase(state) == LB_PHASE_ANSWERED && !lb_intact(ctx, pkt);
}

static __always_inline int lb_from_client(struct xdp_md *ctx, struct lb_packet *pkt, __u16 service)
{
	__u64 key = lb_conn_key(pkt->ip->saddr, pkt->sport, service);
	struct lb_backend *backend = NULL;
	struct lb_conn_ref ref;
	struct lb_hop hop = {};
	struct lb_conn *conn;
	__u64 state = 0;
	struct lb_nat nat;
	int chosen, reason;
	__u32 index;

	if (pkt->ip->ttl <= 1)
		return LB_DROP_TTL;
	if (lb_conn_refer(&ref, key))
		return LB_ERROR_TABLES;
	conn = lb_conn_find(&ref, &state);
	if (conn) {
		index = lb_state_backend(state);
		backend = bpf_map_lookup_elem(&backends, &index);
		if (!backend)
			return LB_ERROR_TABLES;
	}
	if (conn && lb_goes_on(pkt, state, backend, service)) {
		if (!lb_confirms_blindly(ctx, pkt, state))
			lb_conn_update(conn, key, state, pkt, 0);
	} else {
		chosen = lb_admit(ctx, pkt, service, key, state);
		if (chosen <= 0)
			return -chosen;
		index = chosen;
		backend = bpf_map_lookup_elem(&backends, &index);
		if (!backend)
			return LB_ERROR_TABLES;
	}
	pkt->backend = index;
	nat.addr = lb_addr_to_ipv4(&backend->addr);
	nat.port = backend->port;
	reason = lb_hop_of_index(&hop, LB_READ_ONCE(backend->nexthop), LB_STACK_TO_BACKEND);
	return lb_deliver(ctx, pkt, &nat, &hop, reason);
}

/* Whether the packet arrived on the interface that faces the backend it claims to come from. */
static __always_inline int lb_faces(const struct xdp_md *ctx, const struct lb_backend *backend)
{
	__u32 index = LB_READ_ONCE(backend->nexthop);
	struct lb_nexthop *nexthop = bpf_map_lookup_elem(&nexthops, &index);

	return nexthop && nexthop->ifindex == ctx->ingress_ifindex;
}

static __always_inline int lb_reply(struct xdp_md *ctx, struct lb_packet *pkt, struct lb_conn *conn, __u64 key,
				    __u64 state, struct lb_pair pair)
{
	__u32 service_index = pair.service, backend_index = pair.backend;
	struct lb_service *service = bpf_map_lookup_elem(&services, &service_index);
	struct lb_backend *backend = bpf_map_lookup_elem(&backends, &backend_index);
	struct lb_hop hop = {};
	struct lb_nat nat;
	int stack_reason;
	__u16 known;

	if (!service || !backend)
		return LB_ERROR_TABLES;
	if (!lb_faces(ctx, backend))
		return LB_PASS_WRONG_INTERFACE;
	if (pkt->first_fragment)
		return LB_DROP_FRAGMENT;
	if (pkt->ip->ttl <= 1)
		return LB_DROP_TTL;
	nat.addr = lb_addr_to_ipv4(&service->addr);
	nat.port = service->port;
	known = lb_state_nexthop(state);
	stack_reason = lb_hop_to_client(ctx, &hop, known, nat.addr, pkt->ip->daddr);
	lb_conn_update(conn, key, state, pkt, hop.index != known ? hop.index : 0);
	pkt->backend = backend_index;
	return lb_deliver(ctx, pkt, &nat, &hop, stack_reason);
}

static __always_inline int lb_from_backend(struct xdp_md *ctx, struct lb_packet *pkt, struct lb_origin *origin)
{
	pkt->to_client = 1;
	for (int i = 0; i < LB_PAIRS_PER_ORIGIN; i++) {
		struct lb_pair pair = origin->pair[i];
		struct lb_conn_ref ref;
		struct lb_conn *conn;
		__u64 key, state;

		if (!pair.backend)
			break;
		key = lb_conn_key(pkt->ip->daddr, pkt->dport, pair.service);
		if (lb_conn_refer(&ref, key))
			return LB_ERROR_TABLES;
		conn = lb_conn_find(&ref, &state);
		if (conn && lb_state_backend(state) == pair.backend)
			return lb_reply(ctx, pkt, conn, key, state, pair);
	}
	return LB_PASS_NO_CONNECTION;
}

static __always_inline int lb_pipeline(struct xdp_md *ctx, struct lb_packet *pkt)
{
	struct lb_service_entry *entry;
	struct lb_origin *origin;
	struct lb_addr source;
	void *directory_now;
	__u32 zero = 0;
	int reason;

	reason = lb_parse(ctx, pkt);
	if (reason >> LB_REASON_BITS == LB_CLASS_PASS)
		return reason;
	directory_now = bpf_map_lookup_elem(&directory, &zero);
	if (!directory_now)
		return LB_PASS_NO_SERVICE;
	if (reason || pkt->first_fragment) {
		if (lb_vip_serves(directory_now, pkt->ip->daddr, pkt->proto))
			return reason ? reason : LB_DROP_FRAGMENT;
		if (reason)
			return LB_PASS_NO_SERVICE;
	}
	pkt->now = lb_now();
	entry = lb_service_find(directory_now, pkt->ip->daddr, pkt->dport, pkt->proto);
	if (entry)
		return lb_from_client(ctx, pkt, entry->service);
	source = lb_addr_of_ipv4(pkt->ip->saddr);
	origin = lb_origin_find(directory_now, &source, pkt->sport, pkt->proto);
	return origin ? lb_from_backend(ctx, pkt, origin) : LB_PASS_NO_SERVICE;
}

SEC("xdp")
int xdp_lb(struct xdp_md *ctx)
{
	struct lb_packet pkt = {};

	return lb_exit(ctx, &pkt, lb_pipeline(ctx, &pkt));
}
