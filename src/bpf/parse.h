/* SPDX-License-Identifier: GPL-2.0-only */
/* From the frame's first byte to the ports: Ethernet, up to two VLAN tags, IPv4 with options, TCP or UDP. */
#ifndef LB_PARSE_H
#define LB_PARSE_H

#define LB_ETHERTYPE_IPV4 0x0800
#define LB_ETHERTYPE_VLAN 0x8100
#define LB_ETHERTYPE_QINQ 0x88a8

#define LB_MAX_VLAN_TAGS 2

#define LB_IP_MORE_FRAGMENTS 0x2000
#define LB_IP_OFFSET 0x1fff

#define LB_TCP_FIN 0x01
#define LB_TCP_SYN 0x02
#define LB_TCP_RST 0x04
#define LB_TCP_ACK 0x10
#define LB_TCP_FLAGS_BYTE 13

/* What is known of a packet so far: each field is set where it becomes known. */
struct lb_packet {
	struct ethhdr *eth;
	struct iphdr *ip;
	union {
		struct tcphdr *tcp;
		struct udphdr *udp;
		void *l4;
	};
	__u32 frame_len;
	__u32 l4_offset;	/* from the frame's first byte */
	__u16 ip_len;		/* from the IP header on, without padding */
	__u16 l4_len;
	__u16 now;		/* of the connection table's clock */
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 tcp_flags;
	__u8 first_fragment;
	__u8 events;		/* enum lb_event_kind: what the packet did to its connection */
	__u8 to_client;		/* direction, once known */
	__u8 no_tx;		/* sent by a redirect, even back out of the ingress interface */
	__u16 service;		/* once known */
	__u16 backend;		/* once known: whose counters to bump */
	__u32 out_ifindex;	/* once sent */
};

/* Parsed, and maybe balanced: what its exit asks for is known from now on. */
static __always_inline void lb_packet_is_ours(struct lb_packet *pkt)
{
	/* Unknown to the verifier in any case: it would follow the rest of the program once for each value. */
	pkt->events = LB_CAN_BE_WATCHED ? LB_READ_ONCE(lb_watch.wants) : LB_READ_ONCE(lb_opaque_zero);
	pkt->to_client = 0;
	pkt->no_tx = 0;
	pkt->service = 0;
	pkt->backend = 0;
	pkt->out_ifindex = 0;
}

/* Notes events that the packet has not done before. Added, so that the verifier learns nothing of single bits. */
static __always_inline void lb_packet_did(struct lb_packet *pkt, __u8 events)
{
	pkt->events += events;
}

static __always_inline int lb_parse_tcp(struct lb_packet *pkt, void *end)
{
	struct tcphdr *tcp = pkt->l4;

	if ((void *)(tcp + 1) > end)
		return LB_DROP_MALFORMED;
	/* Which says, too, that there are 20 bytes. */
	if (tcp->doff < 5 || tcp->doff * 4 > pkt->l4_len)
		return LB_DROP_MALFORMED;
	pkt->sport = tcp->source;
	pkt->dport = tcp->dest;
	pkt->tcp_flags = ((__u8 *)tcp)[LB_TCP_FLAGS_BYTE];
	return LB_CONTINUE;
}

static __always_inline int lb_parse_udp(struct lb_packet *pkt, void *end)
{
	struct udphdr *udp = pkt->l4;
	__u16 len;

	if ((void *)(udp + 1) > end || pkt->l4_len < sizeof(*udp))
		return LB_DROP_MALFORMED;
	len = bpf_ntohs(udp->len);
	/* The first fragment of a datagram names the whole datagram's length. */
	if (len < sizeof(*udp) || (len > pkt->l4_len && !pkt->first_fragment))
		return LB_DROP_MALFORMED;
	pkt->sport = udp->source;
	pkt->dport = udp->dest;
	pkt->tcp_flags = 0;
	return LB_CONTINUE;
}

static __always_inline int lb_parse_ipv4(struct lb_packet *pkt, void *data, void *end)
{
	struct iphdr *ip = pkt->ip;
	__u32 header;
	__u16 fragment;

	if ((void *)(ip + 1) > end)
		return LB_PASS_TRUNCATED;
	pkt->proto = ip->protocol;
	header = ip->ihl * 4;
	pkt->ip_len = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || header < sizeof(*ip) || pkt->ip_len < header)
		return LB_DROP_MALFORMED;
	pkt->l4_offset = (void *)ip - data + header;
	if (pkt->frame_len - pkt->l4_offset + header < pkt->ip_len)
		return LB_DROP_MALFORMED;
	if (pkt->proto != IPPROTO_TCP && pkt->proto != IPPROTO_UDP)
		return LB_PASS_NO_SERVICE;

	fragment = bpf_ntohs(ip->frag_off);
	if (fragment & LB_IP_OFFSET)
		return LB_DROP_FRAGMENT;
	pkt->first_fragment = !!(fragment & LB_IP_MORE_FRAGMENTS);
	pkt->l4_len = pkt->ip_len - header;
	pkt->l4 = (void *)ip + header;
	return pkt->proto == IPPROTO_TCP ? lb_parse_tcp(pkt, end) : lb_parse_udp(pkt, end);
}

/* A PASS reason holds for whoever the frame is for. A DROP reason only if it is for a VIP, which the caller finds out: the
 * addresses and the protocol are there then.
 */
static __always_inline int lb_parse(struct xdp_md *ctx, struct lb_packet *pkt)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	void *cursor = eth + 1;
	__be16 type;

	pkt->frame_len = end - data;
	if (cursor > end)
		return LB_PASS_TRUNCATED;
	pkt->eth = eth;
	type = eth->h_proto;
#pragma unroll
	for (int tag = 0; tag < LB_MAX_VLAN_TAGS; tag++) {
		struct vlan_hdr *vlan = cursor;

		if (type != bpf_htons(LB_ETHERTYPE_VLAN) && type != bpf_htons(LB_ETHERTYPE_QINQ))
			break;
		cursor = vlan + 1;
		if (cursor > end)
			return LB_PASS_TRUNCATED;
		type = vlan->h_vlan_encapsulated_proto;
	}
	if (type != bpf_htons(LB_ETHERTYPE_IPV4))
		return LB_PASS_NOT_IPV4;
	if (eth->h_dest[0] & 1)
		return LB_PASS_MULTICAST;
	pkt->ip = cursor;
	return lb_parse_ipv4(pkt, data, end);
}

#endif
