/* SPDX-License-Identifier: GPL-2.0-only */
/* Checksums that a local sender left to the device to finish: the field holds the folded pseudo-header sum.
 *
 * XDP does not see whether a frame is of that kind. The field says so but for a chance match, one finished checksum in
 * 65,536. Where the program finishes the checksum itself a match needs no more certainty: a whole checksum is finished to
 * the right value too. Where the kernel is to finish it (SKB mode, stack delivery) a wrong guess loses the packet, and
 * each of its retransmissions with the same bytes. There, a match counts if the sender's last packet matched too;
 * else the segment is summed to see whether the checksum is whole.
 */
#ifndef LB_PARTIAL_H
#define LB_PARTIAL_H

/* 1: the last packet of a sender with this hash had a partial checksum. Lossy: where two senders share a place, more
 * segments are summed.
 */
__u8 lb_partial_senders[LB_PARTIAL_SENDERS];

static __always_inline int lb_partial_matches(struct lb_packet *pkt, __sum16 check)
{
	if (!lb_profile.partial_possible)
		return 0;
	if (pkt->proto == IPPROTO_UDP && bpf_ntohs(pkt->udp->len) != pkt->l4_len)
		return 0;
	return check == lb_csum_fold(lb_csum_pseudo(pkt->ip->saddr, pkt->ip->daddr, pkt->proto, pkt->l4_len));
}

/* Whether the kernel will still finish the packet's checksum. Before any rewriting. */
static __always_inline int lb_partial(struct xdp_md *ctx, struct lb_packet *pkt, __sum16 check)
{
	__u32 place = lb_hash(pkt->ip->saddr, lb_settings.key[2], lb_settings.key[3]) % LB_PARTIAL_SENDERS;
	__u8 *sender = &lb_partial_senders[place];
	int partial;

	if (!lb_profile.partial_possible)
		return 0;
	partial = lb_partial_matches(pkt, check);
	if (partial && !LB_READ_ONCE(*sender))
		partial = !lb_csum_whole(ctx, pkt->l4_offset, pkt->l4_len,
					 lb_csum_pseudo(pkt->ip->saddr, pkt->ip->daddr, pkt->proto, pkt->l4_len));
	if (LB_READ_ONCE(*sender) != partial)
		LB_WRITE_ONCE(*sender, partial);
	return partial;
}

/* Whether a TCP packet's header checksums are right, or still to be finished: whether its receiver will look at it. */
static __always_inline int lb_intact(struct xdp_md *ctx, struct lb_packet *pkt)
{
	__u32 header = pkt->ip_len - pkt->l4_len;

	if (!lb_csum_whole(ctx, pkt->l4_offset - header, header, 0))
		return 0;
	return lb_partial_matches(pkt, pkt->tcp->check) ||
	       lb_csum_whole(ctx, pkt->l4_offset, pkt->l4_len,
			     lb_csum_pseudo(pkt->ip->saddr, pkt->ip->daddr, pkt->proto, pkt->l4_len));
}

#endif
