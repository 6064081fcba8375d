/* SPDX-License-Identifier: GPL-2.0-only */
/* From a backend to a client: translated back if it belongs to a connection of this very backend. */
#ifndef LB_REPLY_H
#define LB_REPLY_H

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
	pkt->service = service_index;
	pkt->backend = backend_index;
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
	lb_explain_entry(service_index, state);
	lb_explain_goes_on();
	if (!lb_profile.explain) {
		lb_answer_seen(pkt, backend_index, key, state);
		lb_conn_update(conn, key, state, pkt, backend, hop.index != known ? hop.index : 0);
	}
	if (pkt->tcp_flags & LB_TCP_RST)
		lb_packet_did(pkt, LB_EVENT_RST);
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

#endif
