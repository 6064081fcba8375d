// SPDX-License-Identifier: GPL-2.0-only
/* The far end of a veth, which needs an XDP program for frames to arrive: counts what the generator's frames came to, and
 * drops it, lets it through to the kernel, or answers it. Everything else passes.
 */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "checksum.h"

char LICENSE[] SEC("license") = "GPL";

#define FAR_END_ETH_P_IP 0x0800
#define FAR_END_SYN 0x02
#define FAR_END_RST 0x04
#define FAR_END_ACK 0x10
#define FAR_END_SYN_ACK (FAR_END_SYN | FAR_END_ACK)

/* far_end.rs has the same names in the same order. */
enum far_end_count {
	FAR_END_MARKED,		/* frames of the generator, by their TOS */
	FAR_END_SYN_ACKS,	/* answers to its clients, by their address; a RST has its cause's TOS */
	FAR_END_RSTS,
	FAR_END_ANSWERS,	/* all others */
	FAR_END_OTHERS,		/* frames that are not about the generator */
	FAR_END_COUNTS,
};

/* What becomes of what is counted as the generator's, or an answer to it. */
enum far_end_action {
	FAR_END_PASS = 0,
	FAR_END_DROP = 1,
	FAR_END_ANSWER = 2,	/* as a server does that keeps no state of SYNs; what has no answer is dropped */
};

struct far_end_rule {
	__u32 clients;		/* the generator's, in host order: a network */
	__u32 mask;
	__u8 tos;		/* 0: no frame is the generator's own */
	__u8 action;
	__u8 reserved[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct far_end_rule);
} far_end_rule SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FAR_END_COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} far_end_counts SEC(".maps");

static __always_inline __u32 far_end_kind(struct xdp_md *ctx, const struct far_end_rule *rule)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = (void *)(eth + 1);
	__u8 *flags;

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(FAR_END_ETH_P_IP))
		return FAR_END_OTHERS;
	if (!rule->mask || (bpf_ntohl(ip->daddr) & rule->mask) != rule->clients)
		return rule->tos && ip->tos == rule->tos ? FAR_END_MARKED : FAR_END_OTHERS;
	flags = (void *)(ip + 1) + 13;
	if (ip->protocol != IPPROTO_TCP || (void *)(flags + 1) > end)
		return FAR_END_ANSWERS;
	if (*flags & FAR_END_RST)
		return FAR_END_RSTS;
	return (*flags & FAR_END_SYN_ACK) == FAR_END_SYN_ACK ? FAR_END_SYN_ACKS : FAR_END_ANSWERS;
}

/* A SYN is answered by a SYN-ACK, an ACK, whose number is never right, by a RST, a datagram by itself. Swapping addresses
 * and ports leaves the checksums as they are.
 */
static __always_inline int far_end_answer(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = (void *)(eth + 1);
	__u32 *words = (void *)(ip + 1);
	__u32 answer[3];
	__u8 mac[6], flags;
	__u64 diff = 0;
	__be32 addr;

	if ((void *)(words + 2) > end)
		return XDP_DROP;
	if (ip->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = (void *)words;

		if ((void *)(tcp + 1) > end)
			return XDP_DROP;
		flags = bpf_ntohl(words[3]) >> 16;
		if (flags & FAR_END_RST || !(flags & FAR_END_SYN_ACK))
			return XDP_DROP;
		answer[0] = flags & FAR_END_SYN ? words[1] * 2654435761U : words[2];
		answer[1] = flags & FAR_END_SYN ? bpf_htonl(bpf_ntohl(words[1]) + 1) : 0;
		answer[2] = bpf_htonl((bpf_ntohl(words[3]) & 0xff00ffff) |
				      (flags & FAR_END_SYN ? FAR_END_SYN_ACK : FAR_END_RST) << 16);
		for (int i = 0; i < 3; i++) {
			diff += lb_csum_diff32(words[1 + i], answer[i]);
			words[1 + i] = answer[i];
		}
		tcp->check = lb_csum_update(tcp->check, diff);
	}
	words[0] = words[0] << 16 | words[0] >> 16;
	addr = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = addr;
	__builtin_memcpy(mac, eth->h_dest, sizeof(mac));
	__builtin_memcpy(eth->h_dest, eth->h_source, sizeof(mac));
	__builtin_memcpy(eth->h_source, mac, sizeof(mac));
	return XDP_TX;
}

SEC("xdp")
int far_end(struct xdp_md *ctx)
{
	struct far_end_rule *rule;
	__u32 zero = 0, kind;
	__u64 *count;

	rule = bpf_map_lookup_elem(&far_end_rule, &zero);
	if (!rule)
		return XDP_ABORTED;
	kind = far_end_kind(ctx, rule);
	count = bpf_map_lookup_elem(&far_end_counts, &kind);
	if (count)
		++*count;
	if (kind == FAR_END_OTHERS || rule->action == FAR_END_PASS)
		return XDP_PASS;
	return rule->action == FAR_END_ANSWER && kind == FAR_END_MARKED ? far_end_answer(ctx) : XDP_DROP;
}
