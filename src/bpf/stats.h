/* SPDX-License-Identifier: GPL-2.0-only */
/* The exit: counts what became of the packet and turns it into the verdict. */
#ifndef LB_STATS_H
#define LB_STATS_H

static __always_inline void lb_count(struct lb_counter *counter, __u32 bytes)
{
	counter->packets++;
	counter->bytes += bytes;
}

static __always_inline void lb_count_backend(const struct lb_packet *pkt)
{
	__u32 index = pkt->backend;
	struct lb_backend_counters *counters = bpf_map_lookup_elem(&backend_counters, &index);

	if (!counters)
		return;
	lb_count(pkt->to_client ? &counters->to_client : &counters->to_backend, pkt->frame_len);
}

static __always_inline void lb_count_reason(const struct lb_packet *pkt, __u32 reason)
{
	struct lb_counter *counter = bpf_map_lookup_elem(&reason_counters, &reason);

	if (counter)
		lb_count(counter, pkt->frame_len);
}

/* Of a frame that is neither a client's nor a backend's. Nothing but its length need be known. */
static __always_inline int lb_exit_nobodys(struct xdp_md *ctx, const struct lb_packet *pkt, __u32 reason)
{
	if (lb_profile.explain)
		lb_explain_end(reason, 0);
	else
		lb_count_reason(pkt, reason);
	if (lb_is_watched())
		lb_watch_nobodys(ctx, pkt, reason);
	return reason >> LB_REASON_BITS == LB_CLASS_PASS ? XDP_PASS : XDP_DROP;
}

/* A packet that did something to its connection, or that somebody watches. */
static __always_inline void lb_exit_notes(struct xdp_md *ctx, const struct lb_packet *pkt, __u32 reason)
{
	if (pkt->events & ~LB_EVENT_WATCHED)
		lb_event_note(pkt->backend, pkt->events);
	if (LB_CAN_BE_WATCHED && pkt->events & LB_EVENT_WATCHED)
		lb_watch_ours(ctx, pkt, reason);
}

static __always_inline int lb_exit(struct xdp_md *ctx, const struct lb_packet *pkt, __u32 reason)
{
	if (lb_profile.explain) {
		lb_explain_end(reason, reason >> LB_REASON_BITS == LB_CLASS_SENT ? pkt->out_ifindex : 0);
	} else {
		lb_count_reason(pkt, reason);
		if (reason >> LB_REASON_BITS <= LB_CLASS_STACK)
			lb_count_backend(pkt);
		if (pkt->events)
			lb_exit_notes(ctx, pkt, reason);
	}
	switch (reason >> LB_REASON_BITS) {
	case LB_CLASS_SENT:
		if (pkt->out_ifindex == ctx->ingress_ifindex && !pkt->no_tx)
			return XDP_TX;
		return bpf_redirect(pkt->out_ifindex, 0);
	case LB_CLASS_STACK:
	case LB_CLASS_PASS:
		return XDP_PASS;
	default:
		return XDP_DROP;
	}
}

#endif
