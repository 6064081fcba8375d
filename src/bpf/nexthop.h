/* SPDX-License-Identifier: GPL-2.0-only */
/* Where a translated packet leaves the host. Next hops are resolved by the control plane; only towards a client whose next
 * hop has no index yet is the kernel's FIB asked.
 */
#ifndef LB_NEXTHOP_H
#define LB_NEXTHOP_H

#define LB_AF_INET 2

/* The FIB is asked as for a packet of the host itself, which a reply from a local VIP is. It also means that no
 * interface but the loopback one needs its `forwarding` sysctl.
 */
#define LB_LOOPBACK_IFINDEX 1

struct lb_hop {
	__u32 ifindex;
	__u32 mtu;
	__u8 macs[12];
	__u16 index;	/* of the next hop; 0: none yet */
	__u16 no_tx;	/* back out of the ingress interface by a redirect, not by XDP_TX */
};

/* Whether XDP can send by the interface, flags (enum lb_nexthop_flags) given: LB_CONTINUE, else why not. */
static __always_inline int lb_hop_sends(const struct xdp_md *ctx, struct lb_hop *hop, __u32 flags, int stack_reason)
{
	hop->no_tx = !!(flags & LB_NEXTHOP_NO_TX);
	if (!hop->no_tx && hop->ifindex == ctx->ingress_ifindex)
		return LB_CONTINUE;
	return flags & LB_NEXTHOP_NO_REDIRECT ? stack_reason : LB_CONTINUE;
}

/* Returns LB_CONTINUE if the packet can be sent directly, else why not. */
static __always_inline int lb_hop_of_index(const struct xdp_md *ctx, struct lb_hop *hop, __u32 index,
					   int stack_reason)
{
	struct lb_nexthop *nexthop = bpf_map_lookup_elem(&nexthops, &index);
	__u8 flags;

	if (!nexthop)
		return LB_ERROR_TABLES;
	flags = LB_READ_ONCE(nexthop->flags);
	hop->ifindex = nexthop->ifindex;
	hop->mtu = nexthop->mtu;
	hop->index = index;
	__builtin_memcpy(hop->macs, nexthop->macs, sizeof(hop->macs));
	if (!(flags & LB_NEXTHOP_VALID))
		return LB_STACK_NEIGHBOUR_UNKNOWN;
	return lb_hop_sends(ctx, hop, flags, stack_reason);
}

static __always_inline int lb_hop_reason(long fib_result)
{
	switch (fib_result) {
	case BPF_FIB_LKUP_RET_SUCCESS:
		return LB_CONTINUE;
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		return LB_STACK_NEIGHBOUR_UNKNOWN;
	default:
		return LB_STACK_ROUTE_BY_KERNEL;
	}
}

/* Has the control plane ask for a neighbour. The lowest byte of an address differs most among neighbours. */
static __always_inline void lb_hop_unresolved(__be32 neighbour, __u32 ifindex)
{
	__u32 index = bpf_ntohl(neighbour) % LB_UNRESOLVED_ROWS;
	struct lb_unresolved *row = bpf_map_lookup_elem(&unresolved, &index);

	if (row && !lb_profile.explain)
		LB_WRITE_ONCE(row->neighbour, (__u64)neighbour << 32 | ifindex);
}

/* Asks the FIB for the way from `saddr` to `daddr`. Returns as lb_hop_of_index. A function that the verifier checks once,
 * on its own: only the first reply of a connection, and those to a neighbour without an index, come here.
 */
__noinline int lb_hop_by_fib(struct xdp_md *ctx, struct lb_hop *hop, __be32 saddr, __be32 daddr)
{
	struct bpf_fib_lookup fib = {
		.family = LB_AF_INET,
		.ifindex = LB_LOOPBACK_IFINDEX,
		.ipv4_src = saddr,
		.ipv4_dst = daddr,
	};
	struct lb_neighbour_key key = {};
	struct lb_egress *egress;
	__u32 *index;
	int reason;

	if (!hop)
		return LB_ERROR_TABLES;
	lb_explain_fib();
	reason = lb_hop_reason(bpf_fib_lookup(ctx, &fib, sizeof(fib), 0));
	/* A route may have an IPv6 gateway, whose address is there then. */
	if (reason == LB_STACK_NEIGHBOUR_UNKNOWN && fib.family == LB_AF_INET)
		lb_hop_unresolved(fib.ipv4_dst, fib.ifindex);
	if (reason)
		return reason;
	hop->ifindex = fib.ifindex;
	hop->mtu = fib.mtu_result;
	hop->index = 0;
	__builtin_memcpy(hop->macs, fib.dmac, 6);
	__builtin_memcpy(hop->macs + 6, fib.smac, 6);
	key.ifindex = fib.ifindex;
	__builtin_memcpy(key.mac, fib.dmac, 6);
	index = bpf_map_lookup_elem(&neighbours, &key);
	if (index)
		return lb_hop_of_index(ctx, hop, *index, LB_STACK_TO_CLIENT);
	egress = bpf_map_lookup_elem(&egresses, &fib.ifindex);
	return egress ? lb_hop_sends(ctx, hop, egress->flags, LB_STACK_TO_CLIENT) : LB_STACK_TO_CLIENT;
}

static __always_inline void lb_explain_hop(const struct lb_hop *hop)
{
	if (!lb_profile.explain)
		return;
	lb_explained.hop = hop->index;
	lb_explained.hop_ifindex = hop->ifindex;
	lb_explained.hop_mtu = hop->mtu;
	__builtin_memcpy(lb_explained.macs, hop->macs, sizeof(lb_explained.macs));
}

static __always_inline int lb_hop_to_backend(const struct xdp_md *ctx, struct lb_hop *hop,
					     const struct lb_backend *backend)
{
	if (lb_profile.stack)
		return LB_STACK_TO_BACKEND;
	return lb_hop_of_index(ctx, hop, LB_READ_ONCE(backend->nexthop), LB_STACK_TO_BACKEND);
}

/* The way to the client of a connection. */
static __always_inline int lb_hop_to_client(struct xdp_md *ctx, struct lb_hop *hop, __u16 index, __be32 vip,
					    __be32 client)
{
	int reason;

	if (lb_profile.stack)
		return LB_STACK_TO_CLIENT;
	if (index) {
		reason = lb_hop_of_index(ctx, hop, index, LB_STACK_TO_CLIENT);
		if (reason != LB_STACK_NEIGHBOUR_UNKNOWN)
			return reason;
	}
	return lb_hop_by_fib(ctx, hop, vip, client);
}

#endif
