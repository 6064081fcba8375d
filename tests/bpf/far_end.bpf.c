// SPDX-License-Identifier: GPL-2.0-only
/* The far end of a veth, which needs an XDP program for frames to arrive: counts what the generator's frames came to, and
 * drops it or lets it through to the kernel. Everything else passes.
 */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

#define FAR_END_ETH_P_IP 0x0800
#define FAR_END_SYN_ACK 0x12
#define FAR_END_RST 0x04

/* far_end.rs has the same names in the same order. */
enum far_end_count {
	FAR_END_MARKED,		/* frames of the generator, by their TOS */
	FAR_END_SYN_ACKS,	/* answers to its clients, by their address */
	FAR_END_RSTS,
	FAR_END_ANSWERS,	/* all others */
	FAR_END_OTHERS,		/* frames that are not about the generator */
	FAR_END_COUNTS,
};

struct far_end_rule {
	__u32 clients;		/* the generator's, in host order: a network */
	__u32 mask;
	__u8 tos;
	__u8 drop;		/* what is counted as the generator's or an answer to it */
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
	if (rule->tos && ip->tos == rule->tos)
		return FAR_END_MARKED;
	if (!rule->mask || (bpf_ntohl(ip->daddr) & rule->mask) != rule->clients)
		return FAR_END_OTHERS;
	flags = (void *)(ip + 1) + 13;
	if (ip->protocol != IPPROTO_TCP || (void *)(flags + 1) > end)
		return FAR_END_ANSWERS;
	if (*flags & FAR_END_RST)
		return FAR_END_RSTS;
	return (*flags & FAR_END_SYN_ACK) == FAR_END_SYN_ACK ? FAR_END_SYN_ACKS : FAR_END_ANSWERS;
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
	return kind != FAR_END_OTHERS && rule->drop ? XDP_DROP : XDP_PASS;
}
