/* SPDX-License-Identifier: GPL-2.0-only */
/* From a client to a backend: the packet goes on with its connection, or opens one. */
#ifndef LB_FORWARD_H
#define LB_FORWARD_H

/* Not "this" network, loopback, multicast, reserved or broadcast (RFC 6890). */
static __always_inline int lb_may_be_client(__be32 addr)
{
	__u8 first = bpf_ntohl(addr) >> 24;

	return first != 0 && first != 127 && first < 224;
}

/* A packet that belongs to no usable connection (`old` is the state of one that is not usable, or 0): may it open one?
 * Returns minus the reason why not, or the backend.
 */
static __always_inline int lb_admit(struct lb_packet *pkt, __u16 service, __u64 hash, __u64 old)
{
	struct lb_new new = {
		.hash = hash,
		.state = old,
		.client = pkt->ip->saddr,
		.client_port = pkt->sport,
		.service = service,
		.now = pkt->now,
		.proto = pkt->proto,
	};
	int backend, reason;

	if (pkt->tcp_flags & LB_TCP_RST)
		return -LB_DROP_RST_UNKNOWN;
	if (!lb_may_be_client(new.client) || new.client == pkt->ip->daddr)
		return -LB_DROP_BAD_SOURCE;
	backend = lb_connect(&new);
	if (!lb_profile.explain && new.enters) {
		reason = lb_enter(&new);
		if (reason)
			return -reason;
		new.made = 1;
	}
	if (new.made) {
		lb_packet_did(pkt, LB_EVENT_OPENED);
		lb_answer_awaited(pkt, backend, hash);
	}
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
		return now < LB_BACKEND_DOWN;
	/* The backend is dead for good: another one's RST tells the client so at once. */
	if (now == LB_BACKEND_RESET)
		return 0;
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

/* The event of a client that did not hear of an answer to its SYN, or 0. A SYN of a connection that is confirmed makes no
 * branch: the verifier would follow it to the end.
 */
static __always_inline __u8 lb_syn_again(const struct lb_packet *pkt, __u64 state)
{
	if ((pkt->tcp_flags & (LB_TCP_SYN | LB_TCP_ACK | LB_TCP_RST)) != LB_TCP_SYN)
		return 0;
	return lb_below(lb_state_phase(state), LB_PHASE_ESTABLISHED) * LB_EVENT_SYN_RETRANSMIT;
}

static __always_inline int lb_from_client(struct xdp_md *ctx, struct lb_packet *pkt, __u16 service)
{
	__u64 key = lb_conn_key(pkt->ip->saddr, pkt->sport, service), hash = lb_conn_hash(key);
	struct lb_backend *backend = NULL;
	struct lb_conn_ref ref;
	struct lb_hop hop = {};
	struct lb_conn *conn;
	__u64 state = 0;
	struct lb_nat nat;
	int chosen, reason;
	__u32 index;

	pkt->service = service;
	if (pkt->ip->ttl <= 1)
		return LB_DROP_TTL;
	if (lb_conn_refer_hashed(&ref, key, hash))
		return LB_ERROR_TABLES;
	conn = lb_conn_find(&ref, &state);
	if (conn) {
		index = lb_state_backend(state);
		backend = bpf_map_lookup_elem(&backends, &index);
		if (!backend)
			return LB_ERROR_TABLES;
	}
	lb_explain_entry(service, state);
	if (conn && lb_goes_on(pkt, state, backend, service)) {
		lb_explain_goes_on();
		if (!lb_profile.explain && !lb_confirms_blindly(ctx, pkt, state))
			lb_conn_update(conn, key, state, pkt, backend, 0);
		lb_packet_did(pkt, lb_syn_again(pkt, state));
	} else {
		chosen = lb_admit(pkt, service, hash, state);
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
	reason = lb_hop_to_backend(ctx, &hop, backend);
	return lb_deliver(ctx, pkt, &nat, &hop, reason);
}

#endif
