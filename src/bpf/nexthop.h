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
	__u32 index;	/* of the next hop; 0: none yet */
};

/* Returns LB_CONTINUE if the packet can be sent directly, else why not. */
static __always_inline int lb_hop_of_index(struct lb_hop *hop, __u32 index, int stack_reason)
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
	return flags & LB_NEXTHOP_STACK ? stack_reason : LB_CONTINUE;
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

	if (row)
		LB_WRITE_ONCE(row->neighbour, (__u64)neighbour << 32 | ifindex);
}

/* Asks the FIB for the way from `saddr` to `daddr`. Returns as lb_hop_of_index. A function that the verifier checks once,
 * on its own: only packets of new connections, and those to a neighbour without an index, come here.
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
	__u32 *index;
	int reason;

	if (!hop)
		return LB_ERROR_TABLES;
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
	return index ? lb_hop_of_index(hop, *index, LB_STACK_TO_CLIENT) : LB_CONTINUE;
}

/* The way to the client of a connection. */
static __always_inline int lb_hop_to_client(struct xdp_md *ctx, struct lb_hop *hop, __u16 index, __be32 vip,
					    __be32 client)
{
	int reason;

	if (index) {
		reason = lb_hop_of_index(hop, index, LB_STACK_TO_CLIENT);
		if (reason != LB_STACK_NEIGHBOUR_UNKNOWN)
			return reason;
	}
	return lb_hop_by_fib(ctx, hop, vip, client);
}

#endif
