/* SPDX-License-Identifier: GPL-2.0-only */
/* Watching: records of what became of packets, for whoever asked for them through lb_watch, by a ring buffer.
 *
 * While nobody watches a packet looks at one word, when it comes; at its end LB_EVENT_WATCHED is one of the events that
 * are looked at anyhow. All else is in functions of their own, which may take their time: what they send is bounded by a
 * rate.
 */
#ifndef LB_WATCH_H
#define LB_WATCH_H

#define LB_NSEC_PER_SEC 1000000000ULL

/* A packet and what became of it. */
struct lb_seen {
	__u32 reason;
	__u32 ifindex;
	__u32 frame_len;
	__u32 out_ifindex;
	__be32 source;		/* as the packet came */
	__be32 destination;
	__be16 sport;
	__be16 dport;
	__u16 service;
	__u16 backend;
	__u8 events;
	__u8 to_client;
	__u8 proto;
	__u8 tcp_flags;
	__u8 has_ports;
	__u8 nobodys;
	__u16 reserved;
};

static __always_inline struct lb_watch_scratch *lb_watch_place(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&watch_scratch, &zero);
}

/* Puts the frame as it is now behind so many bytes of the record's frames. Returns how much of it there is. */
static __always_inline __u32 lb_watch_load(struct xdp_md *ctx, struct lb_watch_scratch *scratch, __u32 at)
{
	__u32 length = ctx->data_end - ctx->data, most = LB_READ_ONCE(lb_watch.length), last;

	if (length > most)
		length = most;
	if (length > LB_SNAPSHOT_LENGTH)
		length = LB_SNAPSHOT_LENGTH;
	/* Bounds that the verifier sees too, whatever the compiler makes of those above. */
	last = length - 1;
	LB_HIDE(last);
	LB_HIDE(at);
	if (last >= LB_SNAPSHOT_LENGTH || at > LB_SNAPSHOT_LENGTH)
		return 0;
	return bpf_xdp_load_bytes(ctx, 0, scratch->frames + at, last + 1) ? 0 : last + 1;
}

/* Keeps the frame as it came. */
__noinline int lb_watch_keep(struct xdp_md *ctx)
{
	struct lb_watch_scratch *scratch = lb_watch_place();

	if (!scratch)
		return 0;
	scratch->event.generation = LB_READ_ONCE(lb_watch.generation);
	scratch->event.captured = lb_watch_load(ctx, scratch, 0);
	return 0;
}

/* Whether records of packets are wanted. */
static __always_inline int lb_is_watched(void)
{
	return LB_CAN_BE_WATCHED && LB_READ_ONCE(lb_watch.wants);
}

static __always_inline void lb_watch_begins(struct xdp_md *ctx)
{
	if (LB_CAN_BE_WATCHED && LB_READ_ONCE(lb_watch.wants) & LB_WATCH_FRAMES)
		lb_watch_keep(ctx);
}

/* Of a packet whose service is not known by its row: whether it is for the address. */
static __always_inline int lb_watch_means_service(const struct lb_seen *seen)
{
	__u32 index = seen->service;
	struct lb_service *service = bpf_map_lookup_elem(&services, &index);

	if (!lb_watch.vip)
		return 1;
	if (!index || !service)
		return seen->destination == lb_watch.vip && (!lb_watch.proto || seen->proto == lb_watch.proto) &&
		       (!lb_watch.vip_port || !seen->has_ports || seen->dport == lb_watch.vip_port);
	return lb_addr_to_ipv4(&service->addr) == lb_watch.vip &&
	       (!lb_watch.vip_port || service->port == lb_watch.vip_port) &&
	       (!lb_watch.proto || service->proto == lb_watch.proto);
}

/* The same, of a backend: whether it comes from there. */
static __always_inline int lb_watch_means_backend(const struct lb_seen *seen)
{
	__u32 index = seen->backend;
	struct lb_backend *backend = bpf_map_lookup_elem(&backends, &index);

	if (!lb_watch.backend)
		return 1;
	if (!index || !backend)
		return seen->source == lb_watch.backend && (!lb_watch.backend_port || seen->sport == lb_watch.backend_port);
	return lb_addr_to_ipv4(&backend->addr) == lb_watch.backend &&
	       (!lb_watch.backend_port || backend->port == lb_watch.backend_port);
}

static __always_inline int lb_watch_means(const struct lb_seen *seen)
{
	__be32 client = seen->to_client ? seen->destination : seen->source;
	__be16 port = seen->to_client ? seen->dport : seen->sport;
	__u32 word = seen->reason / 64;

	if (word >= LB_REASON_WORDS)
		return 0;
	if (!(seen->events & lb_watch.events) && !(lb_watch.reasons[word] >> seen->reason % 64 & 1))
		return 0;
	/* Of what is nobody's it is not known which side the client is. */
	if ((client & lb_watch.client_mask) != lb_watch.client &&
	    !(seen->nobodys && (seen->destination & lb_watch.client_mask) == lb_watch.client))
		return 0;
	if (!lb_watch_means_service(seen) || !lb_watch_means_backend(seen))
		return 0;
	/* By connection, so that what is shown of one is whole. */
	return lb_watch.sample <= 1 ||
	       !(lb_hash(client | (__u64)port << 32, lb_settings.key[2], lb_settings.key[3]) % lb_watch.sample);
}

/* Whether one more record may be sent now. Two CPUs at the turn of a second may send a few more. */
static __always_inline int lb_watch_may_send(__u64 now)
{
	__u64 second = now / LB_NSEC_PER_SEC;

	if (LB_READ_ONCE(lb_watch.second) != second) {
		LB_WRITE_ONCE(lb_watch.second, second);
		LB_WRITE_ONCE(lb_watch.sent, 0);
	}
	if (__sync_fetch_and_add(&lb_watch.sent, 1) < lb_watch.rate)
		return 1;
	__sync_fetch_and_add(&lb_watch.suppressed, 1);
	return 0;
}

static __always_inline void lb_watch_send(struct lb_watch_scratch *scratch)
{
	__u32 length = scratch->event.captured + scratch->event.captured_after;

	if (length > sizeof(scratch->frames))
		return;
	if (bpf_ringbuf_output(&watched, scratch, sizeof(scratch->event) + length, 0))
		__sync_fetch_and_add(&lb_watch.lost, 1);
}

static __always_inline void lb_watch_fill(struct lb_event *event, const struct lb_seen *seen, __u64 now)
{
	event->time = now;
	event->ifindex = seen->ifindex;
	event->frame_len = seen->frame_len;
	event->out_ifindex = seen->out_ifindex;
	event->reason = seen->reason;
	event->service = seen->service;
	event->backend = seen->backend;
	event->events = seen->events;
	event->to_client = seen->to_client;
	event->proto = seen->proto;
	event->tcp_flags = seen->tcp_flags;
	event->source = seen->source;
	event->destination = seen->destination;
	event->sport = seen->sport;
	event->dport = seen->dport;
	event->has_ports = seen->has_ports;
	event->nobodys = seen->nobodys;
}

/* Reads of a packet that is nobody's what the parser had no use for, as far as it is there. A function of its own, that copies
 * instead of comparing with the frame's end: it takes its time, and the verifier little.
 */
__noinline int lb_watch_look(struct xdp_md *ctx, struct lb_seen *seen)
{
	struct {
		__be16 source;
		__be16 dest;
	} ports;
	__u32 at = sizeof(struct ethhdr);
	struct iphdr ip;
	__be16 type;

	if (!seen || bpf_xdp_load_bytes(ctx, at - sizeof(type), &type, sizeof(type)))
		return 0;
#pragma unroll
	for (int tag = 0; tag < LB_MAX_VLAN_TAGS; tag++) {
		if (type != bpf_htons(LB_ETHERTYPE_VLAN) && type != bpf_htons(LB_ETHERTYPE_QINQ))
			break;
		at += sizeof(struct vlan_hdr);
		if (bpf_xdp_load_bytes(ctx, at - sizeof(type), &type, sizeof(type)))
			return 0;
	}
	if (type != bpf_htons(LB_ETHERTYPE_IPV4) || bpf_xdp_load_bytes(ctx, at, &ip, sizeof(ip)))
		return 0;
	if (ip.version != 4 || ip.ihl < sizeof(ip) / 4)
		return 0;
	seen->source = ip.saddr;
	seen->destination = ip.daddr;
	seen->proto = ip.protocol;
	at += ip.ihl * 4;
	if (ip.protocol != IPPROTO_TCP && ip.protocol != IPPROTO_UDP)
		return 0;
	if (bpf_ntohs(ip.frag_off) & LB_IP_OFFSET || bpf_xdp_load_bytes(ctx, at, &ports, sizeof(ports)))
		return 0;
	seen->sport = ports.source;
	seen->dport = ports.dest;
	seen->has_ports = 1;
	if (ip.protocol == IPPROTO_TCP)
		bpf_xdp_load_bytes(ctx, at + LB_TCP_FLAGS_BYTE, &seen->tcp_flags, 1);
	return 0;
}

/* Puts the frame into the record as it came and as it is now. What is not there as it came, because the watch began when the
 * packet was under way, is read now unless it was rewritten; then nothing is to be told of it. Returns whether there is.
 */
static __always_inline int lb_watch_frames(struct xdp_md *ctx, struct lb_watch_scratch *scratch,
					   const struct lb_seen *seen, __u32 kept)
{
	int rewritten = seen->reason >> LB_REASON_BITS <= LB_CLASS_STACK;

	if (!kept && rewritten)
		return 0;
	scratch->event.captured = kept ? kept : lb_watch_load(ctx, scratch, 0);
	if (rewritten)
		scratch->event.captured_after = lb_watch_load(ctx, scratch, kept);
	return 1;
}

/* Sends what was seen, if it is meant; with the frame, and the frame as it is now if it was rewritten, if that is wanted. */
__noinline int lb_watch_note(struct xdp_md *ctx, struct lb_seen *seen)
{
	struct lb_watch_scratch *scratch = lb_watch_place();
	__u64 now = bpf_ktime_get_ns();
	__u32 kept;

	if (!seen || !scratch)
		return 0;
	/* What was kept of this packet must not be taken for what is kept of the next; nor what was kept of one whose end nobody
	 * watched any more, for which the generation is another one.
	 */
	kept = scratch->event.generation == LB_READ_ONCE(lb_watch.generation) ? scratch->event.captured : 0;
	scratch->event.captured = 0;
	scratch->event.captured_after = 0;
	if (now > LB_READ_ONCE(lb_watch.until)) {
		/* It was killed, or stopped: then it asks again. */
		LB_WRITE_ONCE(lb_watch.wants, 0);
		return 0;
	}
	if (!lb_watch_means(seen) || !lb_watch_may_send(now))
		return 0;
	lb_watch_fill(&scratch->event, seen, now);
	if (LB_READ_ONCE(lb_watch.wants) & LB_WATCH_FRAMES) {
		if (!lb_watch_frames(ctx, scratch, seen, kept)) {
			__sync_fetch_and_add(&lb_watch.lost, 1);
			return 0;
		}
	} else if (seen->nobodys) {
		scratch->event.captured = lb_watch_load(ctx, scratch, 0);
	}
	lb_watch_send(scratch);
	scratch->event.captured = 0;
	return 0;
}

/* What a packet had as its own before it was rewritten. */
static __always_inline void lb_watch_undo(const struct lb_packet *pkt, struct lb_seen *seen)
{
	__u32 service_index = pkt->service, backend_index = pkt->backend;
	struct lb_service *service = bpf_map_lookup_elem(&services, &service_index);
	struct lb_backend *backend = bpf_map_lookup_elem(&backends, &backend_index);

	if (pkt->to_client && backend)
		seen->source = lb_addr_to_ipv4(&backend->addr);
	else if (!pkt->to_client && service)
		seen->destination = lb_addr_to_ipv4(&service->addr);
}

/* A packet of a service or of a backend. */
static __always_inline void lb_watch_ours(struct xdp_md *ctx, const struct lb_packet *pkt, __u32 reason)
{
	struct lb_seen seen = {
		.reason = reason,
		.ifindex = ctx->ingress_ifindex,
		.frame_len = pkt->frame_len,
		.source = pkt->ip->saddr,
		.destination = pkt->ip->daddr,
		.sport = pkt->sport,
		.dport = pkt->dport,
		.service = pkt->service,
		.backend = pkt->backend,
		.events = pkt->events & ~LB_EVENT_WATCHED,
		.to_client = pkt->to_client,
		.proto = pkt->proto,
		.tcp_flags = pkt->tcp_flags,
		.has_ports = 1,
	};

	if (reason >> LB_REASON_BITS == LB_CLASS_SENT)
		seen.out_ifindex = pkt->out_ifindex;
	if (reason >> LB_REASON_BITS <= LB_CLASS_STACK)
		lb_watch_undo(pkt, &seen);
	lb_watch_note(ctx, &seen);
}

/* Any other packet: nothing but its length need be known. */
static __always_inline void lb_watch_nobodys(struct xdp_md *ctx, const struct lb_packet *pkt, __u32 reason)
{
	struct lb_seen seen = {
		.reason = reason,
		.ifindex = ctx->ingress_ifindex,
		.frame_len = pkt->frame_len,
		.nobodys = 1,
	};

	lb_watch_look(ctx, &seen);
	lb_watch_note(ctx, &seen);
}

#endif
