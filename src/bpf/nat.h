/* SPDX-License-Identifier: GPL-2.0-only */
/* Rewriting of one address and port, of the TTL and of the checksums over them; and sending the result. */
#ifndef LB_NAT_H
#define LB_NAT_H

/* What a packet becomes. Addresses and ports raw. */
struct lb_nat {
	__be32 addr;
	__be16 port;
};

/* The transport checksum after the rewriting; `finish` is set if it is still to be summed over the whole segment. */
static __always_inline __sum16 lb_nat_check(struct xdp_md *ctx, struct lb_packet *pkt, __sum16 check, __u64 addr_diff,
					    __u64 port_diff, int direct, int *finish)
{
	if (pkt->proto == IPPROTO_UDP && !check)
		return 0;
	if (direct && !lb_profile.skb_mode) {
		*finish = lb_partial_matches(pkt, check);
	} else if (lb_partial(ctx, pkt, check)) {
		/* Whoever finishes it later adds the segment, the ports among it. */
		return lb_csum_fold(check + addr_diff);
	}
	if (*finish)
		return 0;
	check = lb_csum_update(check, addr_diff + port_diff);
	return !check && pkt->proto == IPPROTO_UDP ? 0xffff : check;
}

/* The IP header's part: address, TTL, header checksum. Where the kernel forwards, it counts the hop. */
static __always_inline void lb_nat_ip(struct lb_packet *pkt, __be32 *field, __be32 addr, __u64 addr_diff, int direct)
{
	struct iphdr *ip = pkt->ip;
	__be16 *ttl_and_protocol = (__be16 *)&ip->ttl;
	__be16 before = *ttl_and_protocol;
	/* The TTL is the first byte of the two. Written as one word: a byte that is written and read back within a wider
	 * word holds up the CPU.
	 */
	__be16 after = direct ? before - bpf_htons(0x0100) : before;

	*field = addr;
	if (direct)
		*ttl_and_protocol = after;
	ip->check = lb_csum_update(ip->check, addr_diff + lb_csum_diff16(before, after));
}

static __always_inline void lb_nat_macs(struct lb_packet *pkt, const struct lb_hop *hop)
{
	__builtin_memcpy(pkt->eth, hop->macs, sizeof(hop->macs));
}

/* Rewrites the destination (to a backend) or the source (to a client). Returns LB_CONTINUE or why the packet is lost. */
static __always_inline int lb_nat(struct xdp_md *ctx, struct lb_packet *pkt, const struct lb_nat *nat,
				  const struct lb_hop *hop, int direct)
{
	struct iphdr *ip = pkt->ip;
	__be32 *field = pkt->to_client ? &ip->saddr : &ip->daddr;
	__u64 addr_diff = lb_csum_diff32(*field, nat->addr);
	__u64 port_diff = lb_csum_diff16(pkt->to_client ? pkt->sport : pkt->dport, nat->port);
	__u32 check_offset = pkt->l4_offset;
	int finish = 0;

	/* Source and destination port lie at the same place in both protocols. */
	if (pkt->proto == IPPROTO_TCP) {
		pkt->tcp->check = lb_nat_check(ctx, pkt, pkt->tcp->check, addr_diff, port_diff, direct, &finish);
		check_offset += __builtin_offsetof(struct tcphdr, check);
	} else {
		pkt->udp->check = lb_nat_check(ctx, pkt, pkt->udp->check, addr_diff, port_diff, direct, &finish);
		check_offset += __builtin_offsetof(struct udphdr, check);
	}
	if (pkt->to_client)
		pkt->udp->source = nat->port;
	else
		pkt->udp->dest = nat->port;
	lb_nat_ip(pkt, field, nat->addr, addr_diff, direct);
	if (direct)
		lb_nat_macs(pkt, hop);
	if (finish && lb_csum_complete(ctx, pkt->l4_offset, pkt->l4_len,
				       lb_csum_pseudo(ip->saddr, ip->daddr, pkt->proto, pkt->l4_len), check_offset,
				       pkt->proto))
		return LB_ERROR_CHECKSUM;
	return LB_CONTINUE;
}

/* Translates and sends directly, or translates and leaves the rest to the kernel for the given reason. */
static __always_inline int lb_deliver(struct xdp_md *ctx, struct lb_packet *pkt, const struct lb_nat *nat,
				      const struct lb_hop *hop, int stack_reason)
{
	int reason;

	if (stack_reason == LB_ERROR_TABLES)
		return stack_reason;
	lb_explain_hop(hop);
	if (!stack_reason && pkt->ip_len > hop->mtu)
		return LB_DROP_TOO_BIG;
	reason = lb_nat(ctx, pkt, nat, hop, !stack_reason);
	if (reason)
		return reason;
	if (stack_reason)
		return stack_reason;
	pkt->out_ifindex = hop->ifindex;
	pkt->no_tx = hop->no_tx;
	return pkt->to_client ? LB_SENT_TO_CLIENT : LB_SENT_TO_BACKEND;
}

#endif
